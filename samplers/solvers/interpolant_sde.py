"""Stochastic interpolants: an SDE with a diffusion coefficient of choice. Ma et al. 2024, arXiv:2401.08740 (SiT), section 2.4.

With s the noise level of the flow image, ``dx = velocity ds + w(s) score |ds| + sqrt(2 w(s)) dW`` has the same marginals for
every w >= 0; Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797. For fixed denoised it is solved exactly: the
predicted noise decays by exp(-K), K = integral of w / s^2, and fresh noise takes its place. SiT takes Euler-Maruyama steps
instead, the same in the limit, which blow up where w |ds| > s^2.
"""

from math import exp, expm1, sqrt

import torch

from ..core import Knob, march
from ..noise import from_seed
from .lambda_ddim import NODES, WEIGHTS
from .renoise import check_range, renoised
from .solver import Solver

PANELS = 16


def sample_interpolant_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, diffusion="sigma",
    strength=1.0, noise_from=1000.0, noise_to=0.04,
):  # fmt: skip
    """Order 1 without noise, where it is Euler. From sigma 1 of a flow too: SBDM then draws all noise anew."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    check_range("noise_to", noise_to, "noise_from", noise_from)
    levels = sigmas.cpu().double()
    active = (levels[1:] <= noise_from) & (levels[1:] >= noise_to) & (strength > 0)
    decays = [strength * k if on else 0.0 for k, on in zip(turnover(path, levels, diffusion), active.tolist())]
    shares = [(exp(-k), sqrt(-expm1(-2 * k))) for k in decays]

    def step(i, x, denoised, sigma, sigma_next):
        return renoised(path, x, denoised, sigma, sigma_next, *shares[i], noise_sampler)

    return march(step, model, x, sigmas, extra_args, callback)


def turnover(path, sigmas, diffusion):
    """K of each step at strength 1. sigmas: CPU, float64. Infinite where all noise is replaced."""
    s = sigmas / (path.alpha(sigmas) + sigmas)  # the flow image's noise level
    if diffusion == "constant":
        return (1 / s).diff().tolist()
    if diffusion in ("sigma", "linear"):
        return (-s.log()).diff().tolist()
    if diffusion == "SBDM":
        return path.lam(sigmas).diff().tolist()
    power = {"increasing-decreasing": (torch.pi, 2), "decreasing": (torch.pi / 2, 4)}[diffusion]
    return smooth_turnover(s, *power).tolist()


def smooth_turnover(s, rate, power):
    """Integral of sin(rate s)^power / s^2 over each step, by Gauss-Legendre."""
    share = torch.arange(PANELS, dtype=s.dtype)[:, None] + (1 + NODES) / 2
    width = (s[:-1] - s[1:]) / PANELS
    points = s[1:, None, None] + width[:, None, None] * share
    return width / 2 * (torch.sin(rate * points) ** power / points**2 * WEIGHTS).sum((1, 2))


SOLVERS = {
    "interpolant_sde": Solver(
        sample_interpolant_sde, "stochastic", "Interpolant SDE", lambda knobs: 1, 1, True,
        "Ma et al. 2024, arXiv:2401.08740 (SiT); Albergo et al. 2023, arXiv:2303.08797",
        "flow models at 30 steps and more, where noise along the way corrects errors; the noise can be placed",
        (
            Knob(
                "diffusion", "sigma", "Where noise is replaced, w(s) by noise level s of the flow image: sigma and linear = s, as "
                "SiT's default; constant = 1, more towards the end; SBDM = s / (1 - s), as in score-based diffusion; decreasing = "
                "(1 - cos(pi s))^2 / 4, at high noise; increasing-decreasing = sin(pi s)^2, in the middle.",
                options=("sigma", "linear", "constant", "SBDM", "decreasing", "increasing-decreasing"),
            ),
            Knob("strength", 1.0, "Factor on the diffusion coefficient. 0 = no noise, the same as Euler.", min=0.0, max=10.0, step=0.05),
            Knob(
                "noise_from", 1000.0, "Steps that end above this noise level draw no noise. 1000 = no limit.",
                min=0.0, max=1000.0, step=0.01, advanced=True,
            ),
            Knob(
                "noise_to", 0.04, "Steps that end below this noise level draw no noise; the published 0.04 keeps the end clean. "
                "0 = no limit.", min=0.0, max=1000.0, step=0.01, advanced=True,
            ),
        ),
    ),
}
