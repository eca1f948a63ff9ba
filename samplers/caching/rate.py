"""Rate: skip while the output is expected to have changed little, by how much it last changed for a change of the input.

EasyCache, Zhou et al. 2025, arXiv:2507.02860: k, the change of the output over that of the input between the last two evaluations, is
nearly constant. The changes of the input from step to step, times k, add up until a threshold. Here all changes are relative.
Core's EasyCache adds the change since the last evaluation at each step instead, so that its sum grows with the square of the distance.
"""

from ..core import Knob
from .part import Part
from .policy import COMMON, Accumulating


class Rate(Accumulating):
    needs = ("input_change", "output_change", "run_input_change")

    def __init__(self, rate_threshold, **common):
        super().__init__(rate_threshold, **common)
        self.k = None

    def increase(self, step):
        return None if self.k is None or step.input_change is None else self.k * step.input_change

    def ran(self, step):
        super().ran(step)
        if step.output_change is not None and step.run_input_change:
            self.k = step.output_change / step.run_input_change


RATE = Part(
    "Rate", "EasyCache, Zhou et al. 2025, arXiv:2507.02860", "any network, whole predictions: only input and output are looked at",
    (
        Knob("rate_threshold", 0.1, "Skip while the expected changes of the output add up to less than this, as a share. Neutral: 0, "
             "never.", min=0.0, max=10.0, step=0.01),
        *COMMON,
    ),
    make=lambda settings: Rate(**settings), neutral={"rate_threshold": 0.0},
)  # fmt: skip
