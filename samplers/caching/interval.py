"""Interval: one evaluation every so many steps, evenly or closer together around one place.

DeepCache, Ma et al. 2023, arXiv:2312.00858, section 3.3. Even: full at (step - start) % interval == 0, start being the last of the
``first_steps``. Centred: a power law about a step c; its exponent falls from ``power`` by 0.02 until all steps differ.
The published code takes real roots of negative numbers by way of complex ones, so that its centred steps differ slightly.
"""

from math import copysign, floor

from ..core import Knob
from .part import Part
from .policy import COMMON, Foreseen


class Interval(Foreseen):
    def __init__(self, interval, spacing, centre, power, **common):
        super().__init__(**common)
        self.interval, self.spacing, self.centre, self.power = interval, spacing, centre, power
        self.chosen = None

    def can_skip(self, step):
        if self.chosen is None:
            self.chosen = frozenset(self.evaluated(step.steps))
        skip = step.index not in self.chosen
        return skip, f"{'between' if skip else 'one of'} {len(self.chosen)} of {step.steps} steps"

    def evaluated(self, steps):
        if self.spacing == "even":
            return range(self.first_steps - 1, steps, self.interval)
        return centred(steps, max(1, steps // self.interval), round(self.centre * steps), self.power)


def centred(steps, count, centre, power):
    """So many of the numbers below steps, 0 and then densest around centre: floor(centre + sign(y) |y|^p) at even y."""
    while True:
        power = max(power, 1.0)  # at 1 they lie evenly, at least a step apart, so all differ
        low, high = -(centre ** (1 / power)), (steps - centre) ** (1 / power)
        ys = [low + (high - low) * k / count for k in range(1, count)]
        chosen = sorted({0, *(floor(centre + copysign(abs(y) ** power, y)) for y in ys)})
        if len(chosen) == count or power == 1:
            return chosen
        power -= 0.02


INTERVAL = Part(
    "Interval", "DeepCache, Ma et al. 2023, arXiv:2312.00858", "a fixed saving, the same for every picture; nothing is measured",
    (
        Knob("interval", 3, "Evaluate one step in so many. 3 as published. Above most_in_a_row + 1 that limit counts. Neutral: 1, always.",
             min=1, max=100, step=1),
        Knob("spacing", "even", "Whether those steps lie evenly, or closer together around the centre.", options=("even", "centred"),
             advanced=True),
        Knob("centre", 0.3, "For centred: where they are densest, 0 the start of a run and 1 its end.", min=0.0, max=1.0, step=0.01,
             advanced=True),
        Knob("power", 1.4, "For centred: how much denser. 1: evenly.", min=1.0, max=5.0, step=0.05, advanced=True),
        *COMMON,
    ),
    make=lambda settings: Interval(**settings), neutral={"interval": 1, "spacing": "even"},
)  # fmt: skip
