"""CTM gamma-sampling. Kim et al. 2024, arXiv:2310.02279, algorithm 3, with a DDIM step as the model's jump.

Each step jumps below the next noise level, to sqrt(1 - gamma^2) of it, and adds noise to reach it. With DDIM for the jump,
which any denoiser allows, that is ``alpha' denoised + sigma' (keep eps + sqrt(1 - keep^2) n)``.
"""

from ..core import Knob, march
from ..noise import from_seed
from .renoise import renoised, shares_through
from .solver import Solver


def sample_ctm_gamma(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, gamma=0.5
):
    """gamma 0 is DDIM, order 1; gamma 1 is multistep consistency sampling, core's lcm."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    levels = sigmas.cpu().double()[1:]
    keep, fresh = shares_through(path, levels * (1 - gamma**2) ** 0.5, levels)

    def step(i, x, denoised, sigma, sigma_next):
        return renoised(path, x, denoised, sigma, sigma_next, keep[i], fresh[i], noise_sampler)

    return march(step, model, x, sigmas, extra_args, callback)


SOLVERS = {
    "ctm_gamma": Solver(
        sample_ctm_gamma, "stochastic", "CTM gamma", lambda knobs: 1, 1, True,
        "Kim et al. 2024, arXiv:2310.02279",
        "LCM, TCD and other few-step models, where lcm is too soft and euler too noisy",
        (
            Knob(
                "gamma", 0.5, "Share of the noise that is drawn anew at each step. 0 = none, DDIM, the same as Euler; 1 = all, "
                "core's lcm.", min=0.0, max=1.0, step=0.01,
            ),
        ),
    ),
}
