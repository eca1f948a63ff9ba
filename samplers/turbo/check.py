"""What in a graph contradicts the profile of the distilled model in it."""

from dataclasses import dataclass
from itertools import pairwise

from .bases import BASES
from .profile import Shift

FAR = 4.0  # by how much cfg may be above the range before the picture is certainly burnt beyond use
SAME_SHIFT = 0.05  # relative: templates write 3.1 for 3
SAME_SIGMA = 0.02  # relative


@dataclass(frozen=True)
class Problem:
    """severity: "error" where the result would certainly be noise or wrong, else "warning". remedy: what to do about it.

    A cfg a little too high only oversaturates, and merged fine-tunes are run at 3 to 3.5: up to FAR above the range is a warning.
    """

    severity: str
    text: str
    remedy: str


def problems(
    profile, *, steps=None, cfg=None, shift=None, sigmas=None, sampler=None, base=None, prediction=None, negative=None, expected=None
):
    """[Problem, ...] of what is known of a graph; None is not known.

    steps: how many a whole run takes. shift: of the MODEL's flow, as ModelSamplingSD3 counts it. sigmas: (n + 1,), of the
    run. Where they rise throughout they are an inversion's: levels, steps and end are not looked at. Fewer than two are no run.
    sampler: its name. base: key of BASES, or several that the MODEL may be. prediction: what the MODEL is set to predict.
    negative: whether a negative prompt with words in it is connected. expected: what ``sigmas_of`` gives for the same run.
    """
    values = [] if sigmas is None else [float(sigma) for sigma in sigmas]
    rises = len(values) > 1 and all(after > before for before, after in pairwise(values))
    found = [
        _base(profile, base),
        _prediction(profile, prediction),
        None if rises else _steps(profile, steps),
        _cfg(profile, cfg),
        _shift(profile, shift),
        _sampler(profile, sampler),
        _negative(profile, negative, cfg),
        *([] if rises or len(values) < 2 else _sigmas(profile, values, expected)),
    ]
    return sorted((problem for problem in found if problem), key=lambda problem: problem.severity)


def _base(profile, base):
    bases = (base,) if isinstance(base, str) else tuple(base or ())
    if not bases or profile.base in bases:
        return None
    present = " or ".join(BASES[key].title for key in bases)
    return Problem(
        "error", f"{profile.title} is for {BASES[profile.base].title}, and the model is {present}.",
        "Load the model that the profile is for, or choose a profile for this one.",
    )  # fmt: skip


def _prediction(profile, prediction):
    if prediction is None or prediction == profile.prediction:
        return None
    return Problem(
        "error", f"{profile.title} predicts {profile.prediction}, and the model is set to predict {prediction}.",
        "Use the MODEL that Turbo Sampling puts out, and no other node that sets what is predicted.",
    )  # fmt: skip


def _steps(profile, steps):
    if steps is None or steps in profile.steps:
        return None
    offered = ", ".join(map(str, profile.steps))
    return Problem("warning", f"{profile.title} is offered in {offered} steps, and the run has {steps}.", "Set one of these.")


def _cfg(profile, cfg):
    if cfg is None or profile.cfg_range[0] <= cfg <= profile.cfg_range[1]:
        return None
    low, high = profile.cfg_range
    wanted = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    text = f"{profile.title} wants cfg {wanted}, and it is {cfg:g}."
    if cfg > high:
        severity = "error" if cfg > high + FAR else "warning"
        why = " Guidance is already in the weights, and more of it burns the picture." if high <= 1 else ""
        return Problem(severity, text + why, f"Set cfg to {profile.cfg:g}.")
    return Problem("warning", text, f"Set cfg to {profile.cfg:g}.")


def _shift(profile, shift):
    if shift is None or profile.shift is None or isinstance(profile.shift, Shift):
        return None
    if abs(shift - profile.shift) <= SAME_SHIFT * profile.shift:
        return None
    return Problem(
        "warning", f"{profile.title} wants shift {profile.shift:g}, and the model has {shift:g}.",
        "Use the MODEL or the SIGMAS that Turbo Sampling puts out.",
    )  # fmt: skip


def _sampler(profile, sampler):
    if sampler is None or sampler == profile.sampler:
        return None
    return Problem("warning", f"{profile.title} is sampled with {profile.sampler}, and the sampler is {sampler}.", f"Use {profile.sampler}.")


def _negative(profile, negative, cfg):
    if not negative or (profile.negative and (cfg is None or cfg > 1)):
        return None
    reason = "cfg is 1" if profile.negative else f"{profile.title} is sampled at cfg {profile.cfg:g}"
    return Problem("warning", f"The negative prompt has no effect: {reason}.", "Leave it empty, or say it in the positive prompt.")


def _sigmas(profile, values, expected):
    remedy = "Use the SIGMAS that Turbo Sampling puts out."
    if any(after >= before for before, after in pairwise(values)) or values[-1] < 0:
        yield Problem("error", "The noise levels do not fall from step to step.", remedy)
    if profile.is_flow and values[0] > 1 + 1e-4:
        yield Problem("error", f"The run begins at noise level {values[0]:g}, and a flow model knows none above 1.", remedy)
    if values[-1] > 0 and profile.boundary is None:
        yield Problem("warning", f"The run ends at noise level {values[-1]:g}: noise is left.", remedy)
    if expected is not None:
        yield _unexpected(profile, values, [float(sigma) for sigma in expected], remedy)


def _unexpected(profile, values, expected, remedy):
    strange = [
        value for value in values
        if value > 0 and not any(abs(value - known) <= SAME_SIGMA * known for known in expected)
    ]  # fmt: skip
    if not strange:
        return None
    listed = ", ".join(f"{value:.4g}" for value in strange)
    known = ", ".join(f"{value:.4g}" for value in expected)
    must = "knows" if profile.trained == "listed" else "is sampled at"
    return Problem("warning", f"{profile.title} {must} the noise levels {known}, and the run has {listed} besides.", remedy)
