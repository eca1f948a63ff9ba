"""Guidance in a limited interval of noise levels: the conditional prediction alone outside it.

Kynkaanniemi et al. 2024, arXiv:2404.07724: guidance harms at high noise levels and does nothing at low ones.
"""

from ...core import Knob
from .skip import Policy, Skip


class Interval(Policy):
    """Guides at noise levels from ``low`` to ``high``, both included."""

    def __init__(self, high, low):
        self.high, self.low = high, low

    def needed(self, moment):
        inside = [self.low <= sigma <= self.high for sigma in moment.sigma.tolist()]
        self.reason = "" if all(inside) else f"sigma outside {self.low:.4g} to {self.high:.4g}"
        return inside


def levels(settings, to_sigma):
    start, end = settings["start"], settings["end"]
    return (start, end) if settings["unit"] == "sigma" else (to_sigma(start), to_sigma(end))


def check(settings):
    start, end, unit = settings["start"], settings["end"], settings["unit"]
    if (start <= end) if unit == "sigma" else (start >= end):
        raise ValueError(
            f"start is {start:g} and end is {end:g}: the interval is empty. Sampling goes from high to low sigma and from percent 0 "
            "to 1; start must come before end."
        )
    if unit == "percent" and max(start, end) > 1:
        raise ValueError(f"start is {start:g} and end is {end:g}: in percent both lie between 0 and 1. For noise levels, unit is sigma.")


INTERVAL = Skip(
    "Interval", "Kynkäänniemi et al. 2024, arXiv:2404.07724", "guiding only where it helps, the middle of a run",
    (
        Knob("unit", "percent", "Whether start and end are shares of sampling, 0 its beginning and 1 its end, or noise levels.",
             options=("percent", "sigma")),
        Knob("start", 0.0, "Where guidance begins. Neutral: 0 percent.", min=0.0, max=10000.0, step=0.01),
        Knob("end", 0.5, "Where it ends. Neutral: 1 percent, all of the run.", min=0.0, max=10000.0, step=0.01),
    ),
    neutral={"unit": "percent", "start": 0.0, "end": 1.0},
    policy=lambda settings, to_sigma: Interval(*levels(settings, to_sigma)),
    check=check,
)  # fmt: skip
