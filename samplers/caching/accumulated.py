"""Accumulated: skip until the changes of the signal from step to step, each put through a polynomial, add up to a threshold.

TeaCache, Liu et al. 2024, arXiv:2411.19108, section 3.3. The polynomial turns the change of the time-modulated input into that of the
output; its coefficients belong to one model. Without them it is the identity. One that is negative there counts as 0.
"""

from math import isfinite

from ..core import Knob
from .part import Part
from .policy import COMMON, Accumulating

IDENTITY = (1.0, 0.0)


class Accumulated(Accumulating):
    """coefficients: of the polynomial, highest power first, as in the published tables."""

    needs = ("signal_since_step",)

    def __init__(self, sum_threshold, coefficients=IDENTITY, **common):
        super().__init__(sum_threshold, **common)
        self.coefficients = tuple(coefficients)
        if not self.coefficients or not all(map(isfinite, self.coefficients)):
            raise ValueError(f"coefficients is {self.coefficients}: give one finite number or more, highest power first.")

    def increase(self, step):
        if step.signal_since_step is None:
            return None
        value = 0.0
        for coefficient in self.coefficients:
            value = value * step.signal_since_step + coefficient
        return 0.0 if value < 0 else value


ACCUMULATED = Part(
    "Accumulated Change", "TeaCache, Liu et al. 2024, arXiv:2411.19108", "transformers for which published coefficients exist",
    (
        Knob("sum_threshold", 0.15, "Skip while the changes from step to step add up to less than this. Neutral: 0, never.",
             min=0.0, max=10.0, step=0.01),
        *COMMON,
    ),
    make=lambda settings, coefficients=IDENTITY: Accumulated(coefficients=coefficients, **settings), neutral={"sum_threshold": 0.0},
)  # fmt: skip
