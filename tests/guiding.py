"""What the tests of guidance rules share: random predictions, a moment to see them at, and runs of a rule."""

import torch
from comfyui_distillery.samplers.core import batch_dims
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.moment import Moment

from .problems import FLOW, randn


def predictions(shape, dtype=torch.float64):
    return randn(*shape).to(dtype), randn(*shape, seed=1).to(dtype)


def moment(shape, path=FLOW, step=1, steps=10, dtype=torch.float64):
    """A moment at a random latent, every item at a noise level of its own from 0.4 to 0.8."""
    sigma = torch.linspace(0.4, 0.8, shape[0], dtype=torch.float64).to(dtype)
    return Moment(randn(*shape, seed=2).to(dtype), sigma, step, steps, path)


def defaults(key, **given):
    return {knob.name: knob.default for knob in RULES[key].knobs} | given


def guide(key, steps, scale, *, path=FLOW, only=slice(None), x_dtype=None, **given):
    """One run over several (cond, uncond) steps, with state as a node makes it. only: these items of the batch."""
    rule, knobs = RULES[key], defaults(key, **given)
    state, results = rule.new_state(knobs), []
    for step, (cond, uncond) in enumerate(steps):
        at = moment(cond.shape, path, step, len(steps), x_dtype or cond.dtype)
        at = Moment(at.x[only].to(cond), at.sigma[only].to(cond), step, len(steps), path)
        results.append(rule(cond[only], uncond[only], scale, at=at, state=state, **knobs))
    return results


def dot(a, b):
    """<a, b> of each item, shaped to broadcast."""
    return (a * b).sum(batch_dims(a), keepdim=True)
