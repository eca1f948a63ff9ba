"""When a step may be skipped: what is known of it, and what all policies have in common."""

from dataclasses import dataclass, replace

import torch

from ..core import Knob


@dataclass(slots=True)
class Step:
    """One step of a run, and what was measured at it. None: not measured. Changes are relative and L1: sum |new - old| / sum |old|.

    Known before the evaluation: input_change, of the network's input since the previous step; signal_since_run and signal_since_step,
    of the site's signal (the residual of the first blocks, or the time-modulated input) since the last evaluated and since the
    previous step; latent_error, what ``Policy.observe`` gave.
    Known after one: residual_ratio, the norm of the cached residual over that at the evaluated step before; output_change and
    run_input_change, of the network's output and of its input, both since the evaluated step before; forecast_error, the relative
    error of what the forecast would have given here, of the whole prediction with its guidance where that is the site, and
    forecast_distance, how many steps it reached for that; speed, the
    norm of |x - denoised| / sigma over that of x, so by what share of itself the latent moves per unit of sigma.
    """

    index: int  # 0 to steps - 1
    steps: int  # of this run
    sigma: float
    input_change: float | None = None
    signal_since_run: float | None = None
    signal_since_step: float | None = None
    residual_ratio: float | None = None
    output_change: float | None = None
    run_input_change: float | None = None
    forecast_error: float | None = None
    forecast_distance: float | None = None
    latent_error: float | None = None
    speed: float | None = None
    sigma_next: float | None = None  # where this step leads


def change(new, old):
    """sum |new - old| / sum |old| of two tensors, a tensor of one number; None where one is unknown or of another shape."""
    if new is None or old is None or new.shape != old.shape:
        return None
    return size(new - old) / size(old).clamp(min=torch.finfo(torch.float32).tiny)


def error(guessed, kept):
    """Relative L1 error of a list of forecast tensors, over all of them, a tensor of one number."""
    off = sum(size(a - b) for a, b in zip(guessed, kept, strict=True))
    return off / sum(map(size, kept)).clamp(min=torch.finfo(torch.float32).tiny)


def size(tensor):
    """sum |tensor|, a tensor of one number in float32 at least: half precision ends at 65504."""
    return tensor.abs().sum(dtype=torch.promote_types(tensor.dtype, torch.float32))


class Policy:
    """One condition in one run. At each step the caller asks ``decide`` and then tells ``ran`` or ``skipped``.

    ``decide`` changes nothing but ``reason`` and ``predicted``, so it may be asked again. ``ran`` may come late, with the values known
    after an evaluation, as long as it comes before the next ``decide``: then one wait for the device a step is enough.
    A step that must run for reasons of the caller's own is told to ``ran`` as well.
    """

    needs = ()  # which fields of Step to measure; "latents": it wants ``observe``
    reason = ""  # of the latest decision, in words, for the report
    predicted = None  # relative error expected of the latest step, were it skipped; None where the policy has no estimate
    memory = 0  # bytes of tensors held
    foreseen = False  # whether it knows beforehand which steps it will skip: it has ``ahead``

    def __init__(self, first_steps, last_steps, most_in_a_row, min_steps):
        self.first_steps, self.last_steps = first_steps, last_steps
        self.most_in_a_row, self.min_steps = most_in_a_row, min_steps
        self.in_a_row = 0

    def decide(self, step):
        """True: evaluate. False: skip."""
        self.predicted = None
        self.reason = self.always(step)
        if self.reason:
            return True
        skip, self.reason = self.can_skip(step)
        return not skip

    def always(self, step):
        """Why this step is evaluated whatever the policy says, or ""."""
        if step.steps < self.min_steps:
            return f"run of {step.steps} steps, fewer than {self.min_steps}"
        if step.index < self.first_steps:
            return f"one of the first {self.first_steps} steps"
        if step.index >= step.steps - self.last_steps:
            return f"one of the last {self.last_steps} steps"
        if self.most_in_a_row and self.in_a_row >= self.most_in_a_row:
            return f"{self.in_a_row} skipped in a row"
        return ""

    def can_skip(self, step):
        """(whether to skip, why or why not)"""
        raise NotImplementedError

    def ran(self, step):
        self.in_a_row = 0

    def skipped(self, step):
        self.in_a_row += 1

    def observe(self, x, d, sigma):
        """For policies that need "latents": x, (B, C, ..., H, W), before a step with d None, and again with d after an evaluation.

        d = dx/dsigma, of x's shape: predicted noise on VE paths, velocity on flow. sigma: float.
        Before a step it gives the step's ``latent_error`` as a tensor of one number, None where it has none.
        """


class Foreseen(Policy):
    """Decides by the number of the step alone."""

    foreseen = True

    def ahead(self, step):
        """The numbers of the steps that will be skipped, once this one has been evaluated, until the next that is evaluated."""
        before, later = (self.in_a_row, self.reason, self.predicted), []
        self.in_a_row = 0
        while step.index + 1 < step.steps:
            step = replace(step, index=step.index + 1)
            if self.decide(step):
                break
            later.append(step.index)
            self.in_a_row += 1
        self.in_a_row, self.reason, self.predicted = before
        return later


class Accumulating(Policy):
    """Skips while the sum of ``increase(step)`` over the steps since the last evaluation is below ``threshold``."""

    def __init__(self, threshold, **common):
        super().__init__(**common)
        self.threshold = threshold
        self.total = self.pending = 0.0

    def increase(self, step):
        """What this step, were it skipped, adds to the sum: a float >= 0, or None while it is unknown."""
        raise NotImplementedError

    def can_skip(self, step):
        increase = self.increase(step)
        if increase is None:
            return False, "change not known yet"
        self.pending = self.total + increase
        return below(self.pending, self.threshold, "summed change")

    def ran(self, step):
        super().ran(step)
        self.total = self.pending = 0.0

    def skipped(self, step):
        super().skipped(step)
        self.total = self.pending


def below(value, threshold, name):
    """(whether value is below threshold, that in words). A value that is no number is not."""
    lower = value < threshold
    return lower, f"{name} {value:.4g}, {'below' if lower else 'not below'} {threshold:g}"


COMMON = (
    Knob("first_steps", 2, "Evaluate each of so many first steps, which settle the composition.", min=1, max=1000, step=1),
    Knob("last_steps", 1, "Evaluate each of so many last steps, which settle fine detail.", min=0, max=1000, step=1),
    Knob("most_in_a_row", 4, "Skip at most so many steps in a row, whatever else is set. 0: no limit.", min=0, max=1000, step=1),
    Knob("min_steps", 9, "Runs of fewer steps than this skip nothing: each of few steps matters.", min=1, max=1000, step=1,
         advanced=True),
)  # fmt: skip
