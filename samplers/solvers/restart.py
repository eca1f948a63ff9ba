"""Restart sampling. Xu et al. 2023, arXiv:2306.14878, algorithm 1.

Once the run has come down to restart_min, noise is added back up to restart_max and removed again by the ODE, a few times:
the added noise wipes out errors made so far, and the ODE adds fewer of its own than an SDE's many small steps.
"""

from itertools import pairwise

import torch

from ..core import Knob, denoiser, march
from ..noise import from_seed
from .renoise import check_range, euler_step, heun_step, nearest_inner, raised
from .solver import Solver

RHO = 7  # of EDM's schedule, for the steps down again
BASES = {"heun": (heun_step, 2), "euler": (euler_step, 1)}


def sample_restart(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, base="heun",
    restart_min=0.1, restart_max=0.8, repeats=1, restart_steps=5, s_noise=1.0,
):  # fmt: skip
    """Order of the base solver when repeats is 0. Restarts count to the step they follow: one callback."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    denoise = denoiser(model, extra_args)
    base_step, _ = BASES[base]
    at, leg = None, None
    if repeats:
        at, leg = restart_leg(sigmas.cpu().double(), restart_min, restart_max, restart_steps)

    def step(i, x, denoised, sigma, sigma_next):
        x = base_step(denoise, x, denoised, sigma, sigma_next)
        for _ in range(repeats if i + 1 == at else 0):
            down = leg.to(x)
            x = raised(path, x, down[-1], down[0], s_noise, noise_sampler)
            for high, low in pairwise(down):
                x = base_step(denoise, x, denoise(x, high), high, low)
        return x

    return march(step, model, x, sigmas, extra_args, callback)


def restart_leg(sigmas, restart_min, restart_max, steps):
    """Where to restart, an index of sigmas, and the noise levels from restart_max, at most sigmas[0], down to there."""
    check_range("restart_min", restart_min, "restart_max", restart_max)
    top = min(restart_max, float(sigmas[0]))
    at = nearest_inner(
        sigmas, restart_min, f"restart_min is {restart_min:g} and restart_max {restart_max:g}",
        "Use more steps or raise restart_max; repeats 0 switches restarts off.", below=top,
    )  # fmt: skip
    ends = torch.stack([sigmas.new_tensor(top), sigmas[at]]) ** (1 / RHO)
    leg = torch.lerp(*ends, torch.linspace(0, 1, steps + 1, dtype=sigmas.dtype)) ** RHO
    leg[0], leg[-1] = top, sigmas[at]
    return at, leg


def count_calls(n, knobs):
    _, evaluations = BASES[knobs["base"]]
    return n * evaluations - (evaluations - 1) + knobs["repeats"] * knobs["restart_steps"] * evaluations


SOLVERS = {
    "restart": Solver(
        sample_restart, "stochastic", "Restart", lambda knobs: BASES[knobs["base"]][1], 2, True,
        "Xu et al. 2023, arXiv:2306.14878",
        "removing errors of the first steps at a fraction of an SDE's cost; detail at 15 steps and more",
        (
            Knob(
                "restart_min", 0.1, "Noise level at which to go back; the nearest one of sigmas is taken.",
                min=0.0, max=1000.0, step=0.01,
            ),
            Knob(
                "restart_max", 0.8, "Noise level to go back up to, at most the first of sigmas. On Stable Diffusion 2 is usual; "
                "flow models end at 1.", min=0.0, max=1000.0, step=0.01,
            ),
            Knob("repeats", 1, "How often to go back. 0 = never, the base solver alone.", min=0, max=100, step=1),
            Knob("restart_steps", 5, "Steps on each way down again, on EDM's schedule.", min=1, max=100, step=1),
            Knob("base", "heun", "heun = two model calls a step, second order; euler = one.", options=("heun", "euler")),
            Knob(
                "s_noise", 1.0, "Factor on the added noise. 1 = exact; the paper has 1.003 on ImageNet.",
                min=0.9, max=1.1, step=0.001, advanced=True,
            ),
        ),
        calls=count_calls,
    ),
}
