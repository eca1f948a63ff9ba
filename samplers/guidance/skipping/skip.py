"""Skipping: when the unconditional prediction is worth its evaluation, and what stands in for it when it is not.

A policy decides for every item of a batch, a forecast fills in. Both work on d = (x - denoised) / sigma, which is predicted
noise on VE paths and velocity on flow; difference is d_cond - d_uncond. Both live for one run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ...core import HasNeutral, Knob, append_dims, batch_dims, complete
from ..rule import wide


class Policy:
    """When to evaluate. The default: always."""

    reason = ""  # of the latest decision, in words, for the report
    measure = "velocity"  # of what ``similarities`` is the cosine

    def needed(self, moment):
        """A bool for each item: whether the unconditional prediction has to be evaluated now."""
        return [True] * len(moment.x)

    def observe(self, moment, similarity, items):
        """similarity: the cosine of d_cond and d_uncond, one float for each of these items, which were evaluated."""


class Drop:
    """What stands in: nothing. The conditional prediction alone, as at CFG 1."""

    word = "drop"
    least = 0  # evaluations that an item needs before this can fill in

    def observe(self, moment, cond, difference, items):
        """cond and difference: d_cond and d_cond - d_uncond of these items only, (len(items), ...)."""

    def difference(self, moment, cond):
        """The difference at this moment for every item, (B, ...), from d_cond (B, ...); None is zero."""


class Skipper:
    """One rule at work on one pair of prompts in one run."""

    def __init__(self, policy, forecast):
        self.policy, self.forecast = policy, forecast
        self.seen = None

    def needed(self, moment):
        """A bool for each item. What the forecast cannot fill in yet is needed."""
        self.seen = [0] * len(moment.x) if self.seen is None else self.seen
        return [wanted or seen < self.forecast.least for wanted, seen in zip(self.policy.needed(moment), self.seen)]

    def observe(self, moment, cond, uncond, items, similarity):
        """cond and uncond: denoised, (B, ...), of which the ``items`` were evaluated; similarity: theirs, floats."""
        for item in items:
            self.seen[item] += 1
        self.policy.observe(moment, similarity, items)
        if self.forecast.least:
            d = moment.d(cond)
            self.forecast.observe(moment, d[items], (d - moment.d(uncond))[items], items)

    def estimate(self, moment, cond):
        """The unconditional prediction, denoised (B, ...), from the conditional one."""
        difference = self.forecast.difference(moment, moment.d(cond) if self.forecast.least else None)
        return cond if difference is None else cond + append_dims(moment.sigma, difference) * difference


def similarities(moment, cond, uncond, items, measure="velocity"):
    """The cosine between the two predictions of each of these items, floats, as velocities or as d.

    One wait for the device. Equal predictions have 1, also where both are zero.
    """
    seen = moment.velocity if measure == "velocity" else moment.d
    a, b = (wide(seen(prediction)[items]) for prediction in (cond, uncond))
    dims = batch_dims(a)
    dot, square = (a * b).sum(dims), (a * a).sum(dims) * (b * b).sum(dims)
    return torch.where((a == b).flatten(1).all(1), 1, dot / torch.where(square > 0, square, 1).sqrt()).tolist()


@dataclass(frozen=True)
class Skip(HasNeutral):
    """A skipping rule as users meet it. With its ``neutral`` settings nothing is ever skipped.

    policy(settings, to_sigma) and forecast(settings) are made afresh for each run; to_sigma(percent) is the model's noise level at
    that share of sampling, 0 the noisiest. check(settings) raises ValueError for settings that contradict each other.
    """

    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...]
    neutral: dict
    policy: Callable
    forecast: Callable = field(default=lambda settings: Drop())
    check: Callable = field(default=lambda settings: None)

    def begin(self, knobs, to_sigma):
        settings = complete(self.knobs, knobs)
        self.check(settings)
        return Skipper(self.policy(settings, to_sigma), self.forecast(settings))
