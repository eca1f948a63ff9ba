"""The teacher's path from one noise level to a lower one, each item between its own levels."""

from itertools import pairwise

import torch

from ..samplers.core import Knob, append_dims, to_d
from .geometry import jump

SOLVER_KNOB = Knob(
    "solver", "ddim", "How the teacher takes its steps: ddim (Euler), one evaluation each, or heun, two and more exact.",
    options=("ddim", "heun"), advanced=True,
)  # fmt: skip


def solve(denoise, x, sigmas, solver="ddim"):
    """Where the probability-flow ODE of ``denoise(x, sigma)`` takes x, through falling noise levels sigmas (steps + 1, B).

    ddim: Euler steps. heun: Karras et al. 2022, arXiv:2206.00364, algorithm 1; a step to 0 is Euler's.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        euler = jump(x, sigma, sigma_next, denoised)
        x = heun(denoise, x, sigma, sigma_next, denoised, euler) if solver == "heun" and bool((sigma_next > 0).any()) else euler
    return x


def heun(denoise, x, sigma, sigma_next, denoised, euler):
    ends = sigma_next == 0
    sigma_second = torch.where(ends, sigma, sigma_next)  # any level that can be divided by: not used where it ends
    slope = (to_d(x, sigma, denoised) + to_d(euler, sigma_second, denoise(euler, sigma_second))) / 2
    return torch.where(append_dims(ends, x), euler, x + append_dims(sigma_next - sigma, x) * slope)
