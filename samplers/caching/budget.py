"""Budget: so much predicted error may be spent on skips in all, and no more.

The error of a forecast is measured wherever the network is evaluated anyway. Per step of distance from the evaluation before, it
predicts the error of each skip until the next one. Up to a step, that step's share of the budget may be spent, so that an early part of
a run cannot use it all up; what is left over goes to later ones.
"""

from ..core import Knob
from .part import Part
from .policy import COMMON, Policy, below


class Budget(Policy):
    """``spent`` is the sum of the predicted errors of the steps skipped so far, always less than ``budget``."""

    needs = ("forecast_error",)

    def __init__(self, budget, **common):
        super().__init__(**common)
        self.budget, self.spent = budget, 0.0
        self.last, self.error = None, None  # the last evaluated step, and the forecast's error per step of distance

    def can_skip(self, step):
        if self.error is None:
            return False, "error of the forecast not known yet"
        self.predicted = self.error * (step.index - self.last)
        return below(self.spent + self.predicted, self.budget * (step.index + 1) / step.steps, "predicted error")

    def ran(self, step):
        super().ran(step)
        if step.forecast_error is not None and self.last is not None and step.index > self.last:
            self.error = step.forecast_error / (step.index - self.last)
        self.last = step.index

    def skipped(self, step):
        super().skipped(step)
        self.spent += self.predicted or 0.0


BUDGET = Part(
    "Error Budget", "this pack", "one number for how much a picture may change",
    (
        Knob("budget", 0.5, "Skip while the predicted relative errors of all skips of a run add up to less than this. Neutral: 0, never.",
             min=0.0, max=100.0, step=0.01),
        *COMMON,
    ),
    make=lambda settings: Budget(**settings), neutral={"budget": 0.0},
)  # fmt: skip
