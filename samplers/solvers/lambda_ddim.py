"""Lambda-DDIM: a conjugate integrator. Pandey, Rudolph and Mandt 2023, arXiv:2310.07894, section 3.

DDIM in the variable u = exp(lambda_c t) x, with x and sigma in VE coordinates and t the model time:
``u' = u + lambda_c u (t' - t) + eps * integral of exp(lambda_c t) dsigma``. lambda_c = 0 is DDIM, that is Euler.
This is the scalar form, lambda-DDIM-I.
"""

import torch

from ..core import Knob, march, predicted_noise
from .solver import Solver

# Gauss-Legendre on [-1, 1], 4 points.
NODES = torch.tensor(
    [-0.8611363115940526, -0.33998104358485626, 0.33998104358485626, 0.8611363115940526], dtype=torch.float64
)
WEIGHTS = torch.tensor(
    [0.34785484513745357, 0.6521451548625464, 0.6521451548625464, 0.34785484513745357], dtype=torch.float64
)
PANELS = 256  # at least, over the whole run; 12 digits at any schedule in use


def sample_lambda_ddim(model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, lambda_c=0.0):
    """Order 1. A step from sigma 1 of a flow, which has no VE image, is a plain DDIM step: no sigma is offset.

    Offset, or started just below 1, that step is unstable unless lambda_c is 0: the VE sigma falls a thousandfold in one
    explicit step.
    """
    keep, renoise = coefficients(path, sigmas.cpu().double(), lambda_c)

    def step(i, x, denoised, sigma, sigma_next):
        eps = predicted_noise(path, x, denoised, sigma)
        return keep[i].to(x) * denoised + renoise[i].to(x) * eps

    return march(step, model, x, sigmas, extra_args, callback)


def coefficients(path, sigmas, lambda_c):
    """keep and renoise of each step, ``x' = keep * denoised + renoise * eps``. CPU, float64.

    x = alpha denoised + sigma eps turns the update into this form, where lambda_c = 0 leaves alpha' and sigma' to the
    last digit, and no large VE numbers cancel.
    """
    alpha, finite = path.alpha(sigmas), path.lam(sigmas).isfinite()
    keep, renoise = alpha[1:].clone(), sigmas[1:].clone()
    inner = finite[:-1] & finite[1:]
    if not inner.any():
        return keep, renoise
    ve, t = (sigmas / alpha)[finite], path.time(sigmas[finite])
    dt, back = t.diff(), -lambda_c * t[1:]
    kept = torch.exp(-lambda_c * dt) * (1 + lambda_c * dt)
    excess = (kept - 1) * ve[:-1] + torch.exp(back) * growth(path, sigmas[finite], lambda_c) + torch.expm1(back) * ve.diff()
    keep[inner] *= kept
    renoise[inner] += alpha[1:][inner] * excess
    return keep, renoise


def growth(path, sigmas, lambda_c):
    """Integral of exp(lambda_c t) - 1 over the VE sigma of each step. Panels end where a tabulated t has its kinks."""
    ends = -path.lam(sigmas)  # log of the VE sigma, falling
    knots = torch.linspace(ends[-1], ends[0], PANELS, dtype=torch.float64)
    if path.log_sigmas is not None:
        knots = torch.cat([knots, path.log_sigmas.cpu().double().clamp(ends[-1], ends[0])])
    grid = torch.cat([ends, knots]).sort().values
    half = grid.diff()[:, None] / 2
    log_ve = grid[:-1, None] + half * (1 + NODES)
    integrand = torch.expm1(lambda_c * path.time(path.sigma(-log_ve))) * log_ve.exp()
    total = torch.nn.functional.pad((half * integrand * WEIGHTS).sum(1).cumsum(0), (1, 0))
    return total[torch.searchsorted(grid, ends)].diff()


SOLVERS = {
    "lambda_ddim": Solver(
        sample_lambda_ddim, "conjugate", "Lambda-DDIM", lambda knobs: 1, 1, False,
        "Pandey, Rudolph and Mandt 2023, arXiv:2310.07894",
        "tuning out part of Euler's error for one model, at 10 steps or fewer",
        (
            Knob(
                "lambda_c", 0.0, "Strength of the change of variable. 0 = DDIM, the same as Euler. Useful values are small "
                "and depend on the model: try -0.5 to 0.5. On flow models start at sigma 1, or well below it.",
                min=-1.0, max=1.0, step=0.01,
            ),
        ),
    ),
}
