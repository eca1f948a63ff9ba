"""Ping-pong: denoise all the way, put noise back, and so on. Song et al. 2023, arXiv:2303.01469, algorithm 1.

The sampling of consistency models (LCM), of ADD and LADD, and of DMD2, whose training simulates it backwards: ``alpha' denoised
+ sigma' n``. Here some of n may be the noise that the model has just predicted, as in DDIM, and the rest fresh.
"""

import torch

from ..core import Knob, march
from ..noise import from_seed
from .renoise import renoised
from .scm import S_NOISE
from .solver import Solver


def sample_ping_pong(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, fresh=1.0, fresh_end=-1.0,
    s_noise=1.0, start="as_given",
):  # fmt: skip
    """fresh 1 is core's lcm; fresh 0 is DDIM, order 1. start "unit_noise" takes x for pure noise of std sigmas[0]."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    if start == "unit_noise":
        x = x * float(unit_noise(path, sigmas[0].double()) / sigmas[0])
    shares = torch.linspace(fresh, fresh if fresh_end < 0 else fresh_end, int((sigmas[1:] > 0).sum()), dtype=torch.float64)
    keep, fresh = (1 - shares**2).sqrt().tolist(), (s_noise * shares).tolist()

    def step(i, x, denoised, sigma, sigma_next):
        return renoised(path, x, denoised, sigma, sigma_next, keep[i], fresh[i], noise_sampler)

    return march(step, model, x, sigmas, extra_args, callback)


def unit_noise(path, sigma):
    """Std of the pure noise at which the network gets an input of unit variance, however little noise it is told."""
    if path.is_flow:
        return torch.ones_like(sigma)
    return 1 + sigma if path.prediction == "cosmos" else torch.hypot(sigma, torch.full_like(sigma, path.sigma_data))


SOLVERS = {
    "ping_pong": Solver(
        sample_ping_pong, "turbo", "Ping-pong", lambda knobs: 1, 1, True,
        "Song et al. 2023, arXiv:2303.01469; DMD2, Yin et al. 2024, arXiv:2405.14867",
        "LCM, DMD2, ADD and LADD models: core's lcm with a seed per picture and a say in how much noise is new",
        (
            Knob(
                "fresh", 1.0, "How much of the noise is drawn anew at each step: this times new noise, sqrt(1 - fresh^2) times the "
                "model's own. 1 = all, core's lcm; 0 = none, DDIM, the same as Euler.", min=0.0, max=1.0, step=0.01,
            ),
            Knob(
                "fresh_end", -1.0, "The same at the last step that draws noise, in a straight line over the steps. 0: settles at "
                "the end. -1 = fresh throughout.", min=-1.0, max=1.0, step=0.01,
            ),
            S_NOISE,
            Knob(
                "start", "as_given", "unit_noise: begin with noise of full strength although the first sigma is lower, as one-step "
                "DMD2 (timestep 399) and Hyper-SD (800) expect; only from an empty latent. as_given: the latent as it is.",
                options=("as_given", "unit_noise"), advanced=True,
            ),
        ),
    ),
}  # fmt: skip
