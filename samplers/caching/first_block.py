"""First block: the residual of the first block or blocks is computed at each step; while it is as at the last evaluation, skip.

First Block Cache of ParaAttention and Comfy-WaveSpeed (chengzeyi, 2024), a simpler TeaCache, arXiv:2411.19108.
"""

from ..core import Knob
from .part import Part
from .policy import COMMON, Policy, below


class FirstBlock(Policy):
    needs = ("signal_since_run",)

    def __init__(self, block_threshold, **common):
        super().__init__(**common)
        self.block_threshold = block_threshold

    def can_skip(self, step):
        if step.signal_since_run is None:
            return False, "change not known yet"
        return below(step.signal_since_run, self.block_threshold, "change since the last evaluation")


FIRST_BLOCK = Part(
    "First Block", "First Block Cache of ParaAttention and WaveSpeed, after TeaCache, arXiv:2411.19108",
    "transformers without a calibration table; each step decides by what the prompt does to it",
    (
        Knob("block_threshold", 0.12, "Skip while the first block's residual has changed less than this since the last evaluation, as a "
             "share. Neutral: 0, never.", min=0.0, max=10.0, step=0.01),
        *COMMON,
    ),
    make=lambda settings: FirstBlock(**settings), neutral={"block_threshold": 0.0},
)  # fmt: skip
