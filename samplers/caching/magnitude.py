"""Magnitude: skip while the norm of the residual is expected to stay as it was.

MagCache, Ma et al. 2025, arXiv:2506.09045: from step to step the norm of a residual changes by ratios that hardly depend on the
prompt. The error of a skip is |1 - product of the ratios since the last evaluation|; skip while its sum is at most a threshold, at most
K in a row (``most_in_a_row``), and not in the first part of a run (``retention``).
"""

from itertools import accumulate
from math import exp, floor, isfinite, log, prod

from ..core import Knob
from .part import Part
from .policy import COMMON, Accumulating


class Magnitude(Accumulating):
    """ratios: calibrated, one for each step, of its residual's norm over that at the step before; the first has none and is 1.

    Without them the ratio measured between the last two evaluations, per step, is taken to go on.
    """

    def __init__(self, magnitude_threshold, retention, ratios=None, **common):
        super().__init__(magnitude_threshold, **common)
        self.retention, self.ratios = retention, ratios and checked(ratios)
        self.needs = () if ratios else ("residual_ratio",)
        self.last, self.measured = None, None

    def always(self, step):
        kept = floor(self.retention * step.steps + 0.5)
        return super().always(step) or (f"one of the first {kept} steps" if step.index < kept else "")

    def increase(self, step):
        if self.last is None:
            return None
        if self.ratios:
            return abs(1 - prod(resampled(self.ratios, step.steps)[self.last + 1 : step.index + 1]))
        return None if self.measured is None else abs(1 - self.measured ** (step.index - self.last))

    def ran(self, step):
        super().ran(step)
        if step.residual_ratio is not None and self.last is not None and step.index > self.last:
            self.measured = step.residual_ratio ** (1 / (step.index - self.last))
        self.last = step.index


def resampled(ratios, steps):
    """The ratios for a run of so many steps, such that between any two places of a run their product stays what it was.

    MagCache takes the nearest ratio instead, whose product grows with the number of steps.
    """
    sums = list(accumulate(map(log, ratios)))
    places = [i * (len(ratios) - 1) / max(1, steps - 1) for i in range(steps)]
    lower = [min(int(place), max(0, len(ratios) - 2)) for place in places]
    at = [sums[i] + (place - i) * (sums[min(i + 1, len(sums) - 1)] - sums[i]) for i, place in zip(lower, places)]
    return [exp(now - before) for before, now in zip([0.0, *at], at)]


def checked(ratios):
    for i, ratio in enumerate(ratios):
        if not (isfinite(ratio) and ratio > 0):
            raise ValueError(f"ratios[{i}] is {ratio}: the ratio of two norms must be finite and above 0. Calibrate again.")
    return tuple(ratios)


MAGNITUDE = Part(
    "Magnitude", "MagCache, Ma et al. 2025, arXiv:2506.09045", "a calibrated model at any number of steps; costs nothing to decide",
    (
        Knob("magnitude_threshold", 0.06, "Skip while the expected errors of the residual's norm add up to less than this. Neutral: 0, "
             "never.", min=0.0, max=10.0, step=0.01),
        Knob("retention", 0.2, "Evaluate each step in this first share of a run.", min=0.0, max=1.0, step=0.01),
        *COMMON,
    ),
    make=lambda settings, ratios=None: Magnitude(ratios=ratios, **settings), neutral={"magnitude_threshold": 0.0},
)  # fmt: skip
