"""Several guidance rules one after the other: each takes the result of those before for plain CFG's."""

import torch

from ..core import append_dims


def plain(cond, uncond, scale):
    """Classifier-free guidance. Ho and Salimans 2022, arXiv:2207.12598, equation 6, on denoised latents."""
    return uncond + (cond - uncond) * scale


def as_uncond(cond, guided, scale):
    """The unconditional prediction with which ``plain`` gives ``guided``. scale is not 1."""
    return cond - (guided - cond) / (scale - 1)


def guide(links, cond, uncond, scale, at, denoised=None):
    """cond, uncond (B, ...), denoised, through every (rule, knobs, state) of links, at a Moment. scale is CFG's.

    denoised is what guidance gave already where that is not ``plain``: another pack's function, or a guider's own formula.
    An item whose two predictions are equal has nothing to be guided with: it stays as it is.
    """
    before = plain(cond, uncond, scale) if denoised is None else denoised
    if scale == 1:
        return before
    guided, so_far = before, uncond if denoised is None else as_uncond(cond, denoised, scale)
    differs = append_dims((cond != so_far).flatten(1).any(1), cond)
    for rule, knobs, state in links:
        guided = rule(cond, so_far, scale, at=at, state=state, **knobs)
        so_far = as_uncond(cond, guided, scale)
    return torch.where(differs, guided, before)
