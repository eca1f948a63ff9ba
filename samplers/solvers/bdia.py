"""BDIA, bi-directional integration approximation. Zhang, Lewis and Kleijn 2023, arXiv:2307.10829.

A DDIM step ahead, plus gamma times how far the DDIM step back misses the state before. Each state is a sum of the one before
it and of what is known at the two after it, so that any two neighbours give back the whole run: with z in VP coordinates
``z[i+1] = ahead(z[i]) + gamma (z[i-1] - back(z[i]))``, one model call either way. gamma 1 is the leapfrog. On flow z is x itself,
in the flow's own coordinates.
"""

import torch

from ..core import Knob
from .reversible import Invertible, Run, vp_norms


def sample_bdia(model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, gamma=1.0, pair=None):
    """Order 2 at gamma 1, else 1; the first step is DDIM's. From a ``pair``, states 0 and 1, which is exact, step 1 comes first
    and the last is as the others; else a step to sigma 0 ends on denoised.
    """
    run = Run(model, x, sigmas, extra_args, callback)
    weights = weights_of(path, sigmas, gamma)
    previous, x = (state.to(run.x) for state in pair) if pair else (None, run.x)
    for i in range(1 if pair else 0, run.steps):
        if i == run.steps - 1 and run.ends_clean and not pair:
            return run.denoised(x, i, i)
        ahead, back = ddim_steps(run, x, i, i)
        previous, x = x, ahead if previous is None else ahead + weights[i] * (previous - back)
    return run.result(x)


def invert_bdia(model, x, sigmas, extra_args=None, callback=None, *, path, gamma=1.0):
    """States 0 and 1 of the run that ends on x. Its last state but one, which is free, is put where DDIM would come from.

    There x, scaled to the noise level, stands in for the state that is sought, as in DDIM inversion.
    """
    run = Run(model, x, sigmas, extra_args, callback)
    weights, norms = weights_of(path, sigmas, gamma), vp_norms(path, sigmas)
    last = run.steps - 1
    following = run.x
    x = following + (run.sigmas[last] - run.sigmas[-1]) * run.slope(following * (norms[last] / norms[-1]), last, 0)
    for i in range(last, 0, -1):
        ahead, back = ddim_steps(run, x, i, run.steps - i)
        following, x = x, back + (following - ahead) / weights[i]
    return x, following


def ddim_steps(run, x, i, step):
    """From state i to the noise levels of its neighbours, i + 1 and i - 1; the second means nothing at i = 0."""
    d = run.slope(x, i, step)
    return x + (run.sigmas[i + 1] - run.sigmas[i]) * d, x + (run.sigmas[i - 1] - run.sigmas[i]) * d


def weights_of(path, sigmas, gamma):
    """gamma, carried from VP coordinates over to VE; on flow as it is. Entry 0 is not used."""
    if path.is_flow:
        return torch.full((len(sigmas) - 1,), gamma, dtype=torch.float64)
    norms = vp_norms(path, sigmas)
    return gamma * norms[1:] / norms.roll(1)[:-1]


SOLVERS = {
    "bdia": Invertible(
        sample_bdia, "invertible", "BDIA", lambda knobs: 2 if knobs["gamma"] == 1 else 1, 1, False,
        "Zhang, Lewis and Kleijn 2023, arXiv:2307.10829",
        "inverting a picture exactly at DDIM's cost, with 20 steps or more; not for few steps",
        (
            Knob(
                "gamma", 1.0, "How much of the step back is undone. 0 = DDIM, the same as Euler, and cannot be inverted; 1 is "
                "second order. Keep 1 to invert, 0.9 at least: undoing multiplies errors by 1 / gamma at every step. To sample in few "
                "steps, the paper has 0.5 at 10 steps and 1 at 40.",
                min=0.0, max=1.0, step=0.01,
            ),
        ),
        undo=invert_bdia,
        growth=lambda steps, knobs: knobs["gamma"] ** (1 - steps) if knobs["gamma"] else float("inf"),
        fewest_steps=2,
    ),
}
