"""What the tests of skipping rules share: a run whose two predictions are given, and a policy whose decisions are."""

import torch
from comfyui_distillery.samplers.core import append_dims
from comfyui_distillery.samplers.guidance.moment import Moment
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from comfyui_distillery.samplers.guidance.skipping.skip import Policy, similarities

from .problems import FLOW, randn


class Table(Policy):
    """Decides as written: a list of bools, one for each item, for each call."""

    def __init__(self, table):
        self.rows = iter(table)

    def needed(self, moment):
        return next(self.rows)


def drawn(calls, shape, dtype=torch.float64):
    """Random (d_cond, d_uncond) for so many calls, each (calls, *shape). The first is larger, as in real runs."""
    fade = torch.linspace(2, 1, calls, dtype=torch.float64).view(-1, *[1] * len(shape))
    return (randn(calls, *shape) * fade).to(dtype), (randn(calls, *shape, seed=1) * fade).to(dtype)


def agreeing(similarity):
    """(d_cond, d_uncond), each (calls, B, 1, 1, 2), whose cosines are these: similarity is a (calls, B) table."""
    cosine = torch.tensor(similarity, dtype=torch.float64)
    uncond = torch.stack([cosine, (1 - cosine**2).clamp(min=0).sqrt()], 2)[:, :, None, None]
    return torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(uncond), uncond


def begin(key, **knobs):
    """A rule at the start of a run on a flow model."""
    return SKIPS[key].begin(knobs, lambda percent: 1 - percent)


def follow(skipper, d_cond, d_uncond, sigmas=None, *, numbers=None, steps=None, shapes=None, only=slice(None)):
    """(decisions, d_uncond as evaluated or filled in) of each call. numbers: the step of each call, by default its own.

    sigmas is (calls,) or (calls, B), by default from 1 down to 0.1. only: these items of the batch.
    """
    calls = len(d_cond)
    sigmas = torch.linspace(1, 0.1, calls, dtype=torch.float64) if sigmas is None else sigmas
    decisions, filled = [], []
    for call, number in enumerate(range(calls) if numbers is None else numbers):
        c, u = d_cond[call], d_uncond[call]
        x = randn(*c.shape, seed=call + 2).to(c)[only]
        sigma = sigmas[call].expand(len(c)).to(c)[only]
        moment = Moment(x, sigma, number, steps or calls, FLOW, shapes)
        cond, uncond = (x - append_dims(sigma, x) * d[only] for d in (c, u))
        needed = skipper.needed(moment)
        items = [item for item, wanted in enumerate(needed) if wanted]
        if items:
            skipper.observe(moment, cond, uncond, items, similarities(moment, cond, uncond, items))
        if len(items) < len(x):
            uncond = torch.where(torch.tensor(needed).view(-1, *[1] * (x.ndim - 1)), uncond, skipper.estimate(moment, cond))
        decisions.append(needed)
        filled.append(moment.d(uncond))
    return decisions, torch.stack(filled)
