"""Linear extrapolation: the unconditional branch from the conditional one, with a coefficient fitted during the run.

After LinearAG, Castillo et al. 2023, arXiv:2312.12487, section 5, which predicts d_uncond as a linear combination of the present
d_cond and of earlier d_cond and d_uncond, by least squares over many runs. Here each item has one coefficient k, from its own run:
d_uncond = d_cond - k (d_cond - d_uncond at the last evaluated step).
"""

from dataclasses import replace

import torch

from ...core import Knob, append_dims, batch_dims
from ..rule import wide
from .periodic import EVERY, WARM_UP
from .reuse import Latest
from .skip import Drop, Policy, Skip

LEAST_KEPT = 0.01  # of the difference from one evaluation to the next, so that its logarithm is finite


class Early(Policy):
    """Evaluates at one step in ``every``, spaced ever wider, and at least at the first ``warm_up`` ones."""

    def __init__(self, every, warm_up, bend):
        self.every, self.warm_up, self.bend = every, warm_up, bend
        self.chosen = None

    def needed(self, moment):
        if self.chosen is None:
            self.chosen = evaluated(moment.steps, self.every, self.warm_up, self.bend)
            self.reason = f"{len(self.chosen)} of {moment.steps} steps"
        return [moment.step in self.chosen] * len(moment.x)


def evaluated(steps, every, warm_up, bend):
    """A set of n = steps / every of the numbers below steps, rounded up: the k-th is at least steps (k / n)^bend."""
    n = max(-(-steps // every), min(warm_up, steps))
    chosen = []
    for k in range(n):
        least = chosen[-1] + 1 if chosen else 0
        chosen.append(least if k < warm_up else max(least, round(steps * (k / n) ** bend)))
    return set(chosen)


class Fading(Drop):
    """The last difference, fading with the distance in sigma as fast as between the two evaluations before.

    The share of a difference that the next one keeps is least squares over an item's elements, between 0 and 1; ``trust`` of it
    counts, the rest is plain reuse. Exact with trust 1 where the difference decays exponentially in sigma.
    """

    word, least = "extrapolate", 1

    def __init__(self, trust):
        self.trust = trust
        self.latest, self.sigma, self.rate = Latest(), Latest(), Latest()

    def observe(self, moment, cond, difference, items):
        count, sigma = len(moment.x), moment.sigma[items]
        rate = torch.zeros_like(sigma) if self.latest.value is None else self.measured(difference, sigma, items)
        for latest, rows in ((self.latest, difference), (self.sigma, sigma), (self.rate, rate)):
            latest.write(rows, items, count)

    def measured(self, difference, sigma, items):
        """Rate of decay per unit of sigma, (len(items),). An item with no earlier difference, or one of zero, has 0."""
        last, now = wide(self.latest.value[items]), wide(difference)
        dims = batch_dims(now)
        square = last.square().sum(dims)
        kept = ((last * now).sum(dims) / torch.where(square > 0, square, 1)).clamp(LEAST_KEPT, 1)
        kept = 1 + self.trust * torch.where(square > 0, kept - 1, 0)
        distance = (self.sigma.value[items] - sigma).abs()
        again = distance == 0  # a second evaluation at one noise level says nothing about decay
        return torch.where(again, self.rate.value[items], -kept.log().to(sigma) / torch.where(again, 1, distance))

    def difference(self, moment, cond):
        kept = torch.exp(-self.rate.value * (moment.sigma - self.sigma.value).abs())
        return append_dims(kept, self.latest.value).to(self.latest.value) * self.latest.value


LINEAR = Skip(
    "Linear Extrapolation", "after LinearAG, Castillo et al. 2023, arXiv:2312.12487, section 5",
    "the largest saving at a given change, from 20 steps on",
    (
        replace(EVERY, tooltip="Evaluate the negative prompt at one step in so many, most of them early. 5 saves 40 % of all evaluations. "
                "Neutral: 1, always."),
        WARM_UP,
        Knob("bend", 2.0, "How much denser the evaluations lie early in a run, where the two predictions differ and change most. "
             "1: evenly.", min=1.0, max=5.0, step=0.1, advanced=True),
        Knob("trust", 0.5, "How far to trust the fade measured during the run: 0 uses the last difference again as it was, 1 lets it "
             "fade as measured.", min=0.0, max=1.0, step=0.05, advanced=True),
    ),
    neutral={"every": 1},
    policy=lambda settings, to_sigma: Early(settings["every"], settings["warm_up"], settings["bend"]),
    forecast=lambda settings: Fading(settings["trust"]),
)  # fmt: skip
