"""DEIS: the predicted noise as a polynomial, integrated exactly over the VE sigma. Zhang and Chen 2022, arXiv:2204.13902.

x' / alpha' = x / alpha + sum of C_j eps_j, C_j the integral of the Lagrange polynomial l_j over rho = sigma / alpha, the VE
sigma (equation 15). The modes differ in what l_j is a polynomial in: tab in model time, rhoab in rho, logrho in log rho.
"""

from itertools import pairwise
from math import inf

import torch

from ..core import Knob, march, predicted_noise
from .lambda_ddim import NODES, WEIGHTS
from .phi import exact_weights, total
from .solver import Solver

PANELS = 64  # of 4 Gauss points, per step


def sample_deis(model, x, sigmas, extra_args=None, callback=None, disable=None, *, deis_mode="tab", order=2, path):
    """Order ``order``; the first step is Euler's.

    On flow, rho is infinite at sigma 1: that step is DDIM, and rhoab and logrho make no further use of what it predicted.
    """
    steps = coefficients(path, sigmas.cpu().double(), deis_mode, order)
    history = []  # predicted noise, newest first

    def step(i, x, denoised, sigma, sigma_next):
        history.insert(0, predicted_noise(path, x, denoised, sigma))
        del history[order:]
        keep, weights = steps[i]
        return keep * denoised + total(weights, history)

    return march(step, model, x, sigmas, extra_args, callback)


def coefficients(path, sigmas, deis_mode, order):
    """Per step (keep, weights), ``x' = keep * denoised + sum of weights * eps``, eps newest first. sigmas: CPU, float64.

    With x = alpha denoised + sigma eps put in, nothing is divided by an alpha of 0: keep is alpha', and rho joins C_0.
    """
    steps = []
    rho = sigmas / path.alpha(sigmas)
    grid, integrate = MODES[deis_mode]
    grid = grid(path, sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas[:-1] if sigmas[-1] == 0 else sigmas)):
        alpha = float(path.alpha(sigma_next))
        if rho[i] == inf:
            steps.append((alpha, [float(sigma_next)]))
            continue
        nodes = grid[max(i + 1 - order, 0) : i + 1].flip(0)
        nodes = nodes[nodes.isfinite()]
        newest, *older = integrate(path, nodes, rho[i], rho[i + 1])
        steps.append((alpha, [alpha * (float(rho[i]) + newest), *(alpha * weight for weight in older)]))
    return steps


def over_time(path, nodes, rho, rho_next):
    """C_j for polynomials in model time, by Gauss-Legendre panels even in log rho."""
    grid = torch.linspace(rho.log(), rho_next.log(), PANELS + 1, dtype=torch.float64)
    half = grid.diff()[:, None] / 2
    log_rho = grid[:-1, None] + half * (1 + NODES)
    t = path.time(path.sigma(-log_rho))
    measure = half * WEIGHTS * log_rho.exp()
    others = [torch.cat([nodes[:j], nodes[j + 1 :]]) for j in range(len(nodes))]
    basis = (((t[..., None] - rest) / (node - rest)).prod(-1) for node, rest in zip(nodes, others))
    return [float((measure * polynomial).sum()) for polynomial in basis]


def over_rho(path, nodes, rho, rho_next):
    h = rho_next - rho
    return [float(h) * weight for weight in exact_weights(((nodes - rho) / h).tolist(), 0.0)]


def over_log_rho(path, nodes, rho, rho_next):
    h = float((rho_next / rho).log())
    nodes = ((nodes - rho.log()) / h).tolist()
    return [float(rho_next) * h * weight for weight in exact_weights(nodes, -h)]


MODES = {  # what the polynomial is in, and its integrals over rho
    "tab": (lambda path, sigmas: path.time(sigmas), over_time),
    "rhoab": (lambda path, sigmas: sigmas / path.alpha(sigmas), over_rho),
    "logrho": (lambda path, sigmas: -path.lam(sigmas), over_log_rho),
}

SOLVERS = {
    "deis": Solver(
        sample_deis, "exponential", "DEIS", lambda knobs: knobs["order"], 1, False,
        "Zhang and Chen 2022, arXiv:2204.13902",
        "5 to 12 steps; tab of order 2 with guidance, logrho of order 3 at low CFG",
        (
            Knob(
                "deis_mode", "tab", "What the predicted noise is a polynomial in. tab: model time, the paper's best. rhoab: "
                "sigma / alpha. logrho: its logarithm, as in diffusers.", options=tuple(MODES),
            ),
            Knob(
                "order", 2, "How many predictions to use. 1 = DDIM, the same as Euler. 2 is the steady choice at high CFG; 3 and 4 "
                "are for low CFG and smooth schedules.", min=1, max=4, step=1,
            ),
        ),
        looks_back=lambda knobs: {"order": knobs["order"]},
    ),
}  # fmt: skip
