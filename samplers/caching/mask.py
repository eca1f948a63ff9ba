"""Mask: the steps to evaluate, written down one by one."""

from .part import Part
from .policy import COMMON, Foreseen


class Mask(Foreseen):
    """mask: a bool for each step of the run, True to evaluate. ValueError at the first decision where their number differs."""

    def __init__(self, mask, **common):
        super().__init__(**common)
        self.mask = tuple(mask)

    def decide(self, step):
        check_mask(self.mask, step.steps)
        return super().decide(step)

    def can_skip(self, step):
        skip = not self.mask[step.index]
        return skip, "left out by the mask" if skip else "in the mask"


def check_mask(mask, steps):
    """Raise ValueError unless the mask has one bool for each step."""
    if len(mask) != steps:
        raise ValueError(
            f"mask has {len(mask)} entries and the run {steps} steps: give one entry, True or False, for each step."
        )


MASK = Part(
    "Step Mask", "explicit steps, as FSampler's skip_indices and cache-dit's masks", "a schedule found elsewhere, or by hand",
    COMMON, make=lambda settings, mask: Mask(mask, **settings),
)  # fmt: skip
