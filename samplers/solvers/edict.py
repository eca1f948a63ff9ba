"""EDICT, exact diffusion inversion via coupled transformations. Wallace, Gokul and Naik 2022, arXiv:2211.12446.

Two latents, x and y, each stepped with the slope that the model sees at the other, then drawn together by mixing. Every one of
these assignments changes one latent by a function of the other, and so can be undone.
"""

import torch

from ..core import Knob
from .reversible import Invertible, Run, vp_norms


def sample_edict(model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, p=0.93, pair=None):
    """Order 1, two model calls a step. Starts from x = y, or from a ``pair``, which is exact; without one, a step to sigma 0
    ends on denoised.
    """
    run = Run(model, x, sigmas, extra_args, callback)
    scales = scales_of(path, sigmas)
    x, y = (state.to(run.x) for state in pair) if pair else (run.x, run.x)
    for i in range(run.steps):
        if i == run.steps - 1 and run.ends_clean and not pair:
            return run.denoised(y, i, i)
        dt = run.sigmas[i + 1] - run.sigmas[i]
        x, y = in_turn(run, i, x, y)
        x = x + dt * run.slope(y, i, i)
        y = y + dt * run.slope(x * scales[i], i)
        x, y = in_turn(run, i, x, y)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return run.result(x)


def invert_edict(model, x, sigmas, extra_args=None, callback=None, *, path, p=0.93):
    """x and y of the run on which both end on x: every line of ``sample_edict``, backwards."""
    run = Run(model, x, sigmas, extra_args, callback)
    scales = scales_of(path, sigmas)
    x = y = run.x
    for i in reversed(range(run.steps)):
        dt = run.sigmas[i + 1] - run.sigmas[i]
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        x, y = in_turn(run, i, x, y)
        y = y - dt * run.slope(x * scales[i], i, run.steps - 1 - i)
        x = x - dt * run.slope(y, i)
        x, y = in_turn(run, i, x, y)
    return x, y


def in_turn(run, i, x, y):
    """x first where an even number of steps is left after step i, else y: counted from the end, which both directions know."""
    return (y, x) if (run.steps - 1 - i) % 2 else (x, y)


def scales_of(path, sigmas):
    """By what a latent at sigmas[i + 1], where a step leads, is multiplied for a model that is asked at sigmas[i].

    As in the paper, the network then gets that latent as it is: in VP coordinates, but on flow in flow's own.
    """
    norms = vp_norms(path, sigmas)
    return torch.ones_like(norms[1:]) if path.is_flow else norms[:-1] / norms[1:]


SOLVERS = {
    "edict": Invertible(
        sample_edict, "invertible", "EDICT", lambda knobs: 1, 2, False,
        "Wallace, Gokul and Naik 2022, arXiv:2211.12446",
        "inverting a picture exactly, for edits that keep what the prompts have in common",
        (
            Knob(
                "p", 0.93, "Share that each of the two latents keeps for itself when they are mixed after a step. 1 = no mixing: "
                "they may drift apart. Lower holds them together, but undoing multiplies errors by 1 / p^2 at every step: to invert "
                "with more than 60 steps, go nearer to 1.",
                min=0.5, max=1.0, step=0.01,
            ),
        ),
        calls=lambda steps, knobs: 2 * steps - 1,
        undo=invert_edict,
        growth=lambda steps, knobs: knobs["p"] ** (-2 * steps),
    ),
}
