"""Denoising Langevin Gibbs, DMCMC. Kim and Ye 2023, arXiv:2209.14593, without its noise-level classifier.

A Markov chain in the noisy images of one level, then a short denoising run from where it ended: the chain mixes where noise
makes that easy, and few steps finish. The paper also moves the noise level, by a classifier trained for the model, which
ordinary checkpoints lack; here the level stays. In high dimension an image's own level is nearly certain, so little is lost.
Each Langevin step ``dx = score / 2 dt + dW`` is solved exactly for fixed denoised, so the noise level does not drift either.
"""

from math import exp, expm1, sqrt

from ..core import Knob, denoiser, march
from ..noise import from_seed
from .renoise import heun_step, nearest_inner, renoised
from .solver import Solver


def sample_dlg(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, chain_sigma=0.6,
    chain_steps=10, chain_step=0.2,
):  # fmt: skip
    """Heun before and after the chain: order 2 when chain_steps is 0. The chain counts to the step it follows."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    denoise = denoiser(model, extra_args)
    keep, fresh = exp(-chain_step / 2), sqrt(-expm1(-chain_step))
    at = None
    if chain_steps:
        at = nearest_inner(
            sigmas.cpu(), chain_sigma, f"chain_sigma is {chain_sigma:g}", "Use 2 steps or more; chain_steps 0 switches it off."
        )

    def step(i, x, denoised, sigma, sigma_next):
        x = heun_step(denoise, x, denoised, sigma, sigma_next)
        for _ in range(chain_steps if i + 1 == at else 0):
            x = renoised(path, x, denoise(x, sigma_next), sigma_next, sigma_next, keep, fresh, noise_sampler)
        return x

    return march(step, model, x, sigmas, extra_args, callback)


SOLVERS = {
    "dlg": Solver(
        sample_dlg, "stochastic", "Denoising Langevin Gibbs", lambda knobs: 2, 2, True,
        "Kim and Ye 2023, arXiv:2209.14593 (DMCMC)",
        "variants of one picture: its layout stays, its details change with chain_sigma and chain_steps",
        (
            Knob(
                "chain_sigma", 0.6, "Noise level at which the chain runs; the nearest one of sigmas after the first is taken. "
                "Higher changes more of the picture.", min=0.0, max=1000.0, step=0.01,
            ),
            Knob("chain_steps", 10, "Length of the chain, one model call each. 0 = no chain, core's heun.", min=0, max=1000, step=1),
            Knob(
                "chain_step", 0.2, "Size of a chain step: how much noise is renewed, in units of sigma^2. Larger moves faster "
                "and less exactly.", min=0.01, max=2.0, step=0.01,
            ),
        ),
        calls=lambda n, knobs: 2 * n - 1 + knobs["chain_steps"],
    ),
}
