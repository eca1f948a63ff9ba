"""Budget: skip while the final latent is expected to be off by less than a given share of itself.

The relative error of a forecast is measured wherever the network is evaluated anyway, and taken to grow with the distance from the
evaluation before, to the power 1.5: a line's would by 2, noise by less. Were a step skipped, it would put the latent off by that error
of the slope times the length of the step, which is compared with the latent itself; so early steps of a flow, which are short, are
cheap, and so are those of a noise model at high noise, where the latent is large. Errors of steps skipped in a row point the same way
and add up; those of different stretches do not, and their squares do. Up to a step, that step's share of the budget may be spent, so
that an early part of a run cannot use it all up.
"""

from math import hypot, sqrt

from ..core import Knob
from .part import Part
from .policy import COMMON, Policy, below

GROWTH = 1.5


class Budget(Policy):
    """``spent`` is the expected relative error of the final latent by all stretches before this one, ``stretch`` by this one."""

    needs = ("forecast_error", "speed")

    def __init__(self, budget, **common):
        super().__init__(**common)
        self.budget, self.spent, self.stretch = budget, 0.0, 0.0
        self.last, self.error, self.distance, self.speed = None, None, None, None  # as measured at the last evaluation

    def can_skip(self, step):
        if None in (self.error, self.speed, step.sigma_next):
            return False, "error of the forecast not known yet"
        error = self.error * ((step.index - self.last) / self.distance) ** GROWTH
        self.predicted = error * self.speed * abs(step.sigma - step.sigma_next)
        total = hypot(self.spent, self.stretch + self.predicted)
        return below(total, self.budget * sqrt((step.index + 1) / step.steps), "predicted error")

    def ran(self, step):
        super().ran(step)
        self.spent, self.stretch = hypot(self.spent, self.stretch), 0.0
        if step.forecast_error is not None and step.forecast_distance:
            self.error, self.distance = step.forecast_error, step.forecast_distance
        self.last, self.speed = step.index, step.speed

    def skipped(self, step):
        super().skipped(step)
        self.stretch += self.predicted or 0.0


BUDGET = Part(
    "Error Budget", "this pack", "one number for how much a picture may change",
    (
        Knob("budget", 0.05, "Skip while the final latent is expected to be off by less than this share of itself. Neutral: 0, never.",
             min=0.0, max=10.0, step=0.005),
        *COMMON,
    ),
    make=lambda settings: Budget(**settings), neutral={"budget": 0.0},
)  # fmt: skip
