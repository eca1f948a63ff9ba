"""Learning rates over a run."""

import math

from ..samplers.core import Knob

SHAPES = {  # of the part of the run that is over, 0 to 1, and the floor
    "constant": lambda over, floor: 1.0,
    "linear": lambda over, floor: 1 - (1 - floor) * over,
    "cosine": lambda over, floor: floor + (1 - floor) * (1 + math.cos(math.pi * over)) / 2,
}

RATE_KNOBS = (
    Knob("schedule", "cosine", "How the learning rate falls over the run.", options=tuple(SHAPES), advanced=True),
    Knob("warmup", 50, "Steps over which the learning rate rises to its full value. 0 = none.", min=0, max=10000, step=1, advanced=True),
    Knob("floor", 0.1, "Share of the learning rate left at the end.", min=0.0, max=1.0, step=0.01, advanced=True),
)  # fmt: skip


def rate(step, steps, *, schedule="cosine", warmup=50, floor=0.1):
    """What to multiply the learning rate by at this step of so many, counted from 0: rises to 1 over the warm-up, then falls.

    A warm-up longer than half of the run ends there.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return SHAPES[schedule](min((step - warmup) / max(steps - warmup, 1), 1.0), floor)
