"""Gradient estimation. Permenter and Yuan 2023, arXiv:2306.04848: denoising as descent on the distance to the data.

The slope of a step is gamma times the newest and 1 - gamma times the one before: gamma 1 is Euler, 1.5 Adams-Bashforth of order
2 (core's ipndm(max_order=2)), the paper's 2 goes beyond. Core has it with one gamma, no noise, and a last step to sigma 0 that
does not extrapolate; the published one does.
"""

from itertools import pairwise

import torch

from ..core import Knob, denoiser, to_d
from ..noise import from_seed
from .solver import Solver


def sample_gradient_estimation(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, gamma=2.0, gamma_end=-1.0,
    last_step_extrapolation=True, mu=0.0, gammas=None,
):
    """gamma runs linearly from the second step, as the first is Euler's, to gamma_end at the last; below 0 that is gamma too.
    gammas, a list of one number a step, takes the place of both. ValueError for another length.

    With mu a step goes down to a sigma below its end, and fresh noise takes it back up: see ``descents``. Noise predictions are
    averaged on VE paths, as in the paper, velocities on flow.
    """
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    denoise = denoiser(model, extra_args)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    steps = len(sigmas) - 1
    if gammas is not None and len(gammas) != steps:
        raise ValueError(f"gammas holds {len(gammas)} numbers and sigmas has {steps} steps: give one a step.")
    gammas = gammas or [1.0, *torch.linspace(gamma, gamma if gamma_end < 0 else gamma_end, steps - 1, dtype=torch.float64).tolist()]
    lows, keeps, noises = (factor.to(x) for factor in descents(path, sigmas.cpu().double(), mu))
    sigmas = sigmas.to(x)
    ends_clean = bool(sigmas[-1] == 0)
    before = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        d = to_d(x, sigma, denoised)
        is_last = i == steps - 1 and ends_clean
        low = lows[i]
        x = denoised if is_last else x + (low - sigma) * d
        if before is not None and (last_step_extrapolation or not is_last):
            x = x + (low - sigma) * (gammas[i] - 1) * (d - before)
        before = d
        if mu and not is_last:
            x = keeps[i] * x + noises[i] * noise_sampler(sigma, sigma_next)
    return x


def descents(path, sigmas, mu):
    """For each step: the sigma to go down to, and the factors of x and of the noise on the way up. CPU, float64.

    In VE coordinates, sigma_p = (sigma_next / sigma^mu)^(1 / (1 - mu)) and noise sqrt(sigma_next^2 - sigma_p^2), of smalldiffusion,
    the authors' code. From sigma 1 of a flow, infinite there, sigma_p is 0: all noise is drawn anew.
    """
    if mu == 0:
        return sigmas[1:], torch.ones_like(sigmas[1:]), torch.zeros_like(sigmas[1:])
    ve = sigmas / path.alpha(sigmas)
    low = ((ve[1:].log() - mu * ve[:-1].log()) / (1 - mu)).exp()  # 0 where the step ends on sigma 0, or begins at infinity
    noise = (ve[1:] ** 2 - low**2).clamp(min=0).sqrt()
    low = path.from_ve(low, low)[1]
    alpha = path.alpha(sigmas[1:])
    return low, alpha / path.alpha(low), alpha * noise


SOLVERS = {
    "gradient_estimation": Solver(
        sample_gradient_estimation, "momentum", "Gradient estimation",
        lambda knobs: 2 if knobs["gamma"] == 1.5 and knobs["gamma_end"] in (1.5, -1.0) and not knobs["mu"] else 1, 1, False,
        "Permenter and Yuan 2023, arXiv:2306.04848",
        "5 to 10 steps; the published gamma of 2 suits eps models at low CFG, on others begin at 1.5",
        (
            Knob(
                "gamma", 2.0, "How far to go beyond the newest slope, at the first steps. 1 = Euler, 1.5 = ipndm of order 2, "
                "2 = as published.", min=0.0, max=4.0, step=0.05,
            ),
            Knob("gamma_end", -1.0, "The same at the last step; in between it changes evenly. Neutral: -1, gamma throughout.",
                 min=-1.0, max=4.0, step=0.05),
            Knob(
                "last_step_extrapolation", True, "Go beyond at the last step too, as published. Off = end on the model's "
                "prediction, as core's gradient_estimation does.",
            ),
            Knob(
                "mu", 0.0, "Share of each step to replace by fresh noise, on a log scale. 0 = none; 0.5 is near ancestral "
                "sampling.", min=0.0, max=0.9, step=0.05, advanced=True,
            ),
        ),
    ),
}
