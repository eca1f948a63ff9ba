"""Momentum solvers. Wizadwongsa et al. 2023, arXiv:2307.11118: heavy ball, generalised heavy ball (GHVB), Nesterov.

Adams-Bashforth with a moving average, which damps the oscillation that few steps and strong guidance set off. A
fractional order o means k = ceil(o) past derivatives and an average that gives the newest its fractional part, beta.
A whole o has beta = 1, no averaging: Adams-Bashforth of order o, core's ipndm(max_order=o). All works on dx/dsigma:
predicted noise on VE paths, as in the paper, velocity on flow.
"""

from math import ceil

import torch

from ..core import Knob, march, to_d
from .solver import Solver


def sample_ghvb(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, order=2.5, variable_step=False
):
    """Generalised heavy ball: averages the derivative, then corrects the lag, so the order stays k = ceil(order).

    Warm-up uses what history there is. Its first step is Euler's, which alone costs an error of order 2.
    """
    k, beta = split_order(order)
    grid = step_grid(sigmas, variable_step)
    velocities = []  # newest first

    def step(i, x, denoised, sigma, sigma_next):
        d = to_d(x, sigma, denoised)
        velocities.insert(0, torch.lerp(velocities[0], d, beta) if velocities else d)
        del velocities[k:]
        weights = ghvb_weights(grid, i, len(velocities), beta)
        return x + (sigma_next - sigma) * combine(weights, velocities)

    return march(step, model, x, sigmas, extra_args, callback)


def sample_heavy_ball(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, order=2.5, variable_step=False
):
    """Polyak's heavy ball: steps along the average of the Adams-Bashforth slopes. Order 1 unless order is whole."""
    step = averaged_step(sigmas, order, variable_step, lambda slope, average, beta: average)
    return march(step, model, x, sigmas, extra_args, callback)


def sample_nesterov(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, order=2.5, variable_step=False
):
    """Nesterov: as heavy ball, but averages once more towards the newest slope. Order 1 unless order is whole."""
    step = averaged_step(sigmas, order, variable_step, lambda slope, average, beta: torch.lerp(average, slope, beta))
    return march(step, model, x, sigmas, extra_args, callback)


def averaged_step(sigmas, order, variable_step, direction):
    """One run's step along ``direction(slope, average, beta)``, average being the mean of the Adams-Bashforth slopes."""
    k, beta = split_order(order)
    grid = step_grid(sigmas, variable_step)
    history, average = [], None  # history newest first

    def step(i, x, denoised, sigma, sigma_next):
        nonlocal average
        history.insert(0, to_d(x, sigma, denoised))
        del history[k:]
        slope = combine(adams_bashforth(grid, i, len(history)), history)
        average = slope if average is None else torch.lerp(average, slope, beta)
        return x + (sigma_next - sigma) * direction(slope, average, beta)

    return step


def split_order(order):
    """k derivatives in use and the newest one's share, beta in (0, 1]. To 3 digits: 3.0000000000000004 means 3."""
    order = round(order, 3)
    k = ceil(order)
    return k, round(order - k, 3) % 1 or 1.0


def step_grid(sigmas, variable_step):
    """Where the derivatives lie: at the sigmas, or, as published, evenly spaced whatever the sigmas. CPU, float64."""
    return sigmas.cpu().double() if variable_step else torch.arange(len(sigmas), dtype=torch.float64)


def adams_bashforth(grid, i, k):
    """Weights, newest first, of the last k derivatives: exact over step i for polynomials of degree below k."""
    nodes = (grid[i - k + 1 : i + 1].flip(0) - grid[i]) / (grid[i + 1] - grid[i])
    powers = torch.arange(k, dtype=grid.dtype)
    return torch.linalg.solve(nodes ** powers[:, None], 1 / (powers + 1))


def ghvb_weights(grid, i, k, beta):
    """Weights, newest first, of the last k averaged derivatives v, where d = v + (1 - beta)/beta (v - previous v).

    Adams-Bashforth over k values of v, plus the lag term over the k - 1 differences that k values give. On even steps
    these are the paper's tables.
    """
    weights = adams_bashforth(grid, i, k)
    if k == 1:
        return weights
    lag = torch.nn.functional.pad(adams_bashforth(grid, i, k - 1), (1, 1)).diff()
    return weights + (1 - beta) / beta * lag


def combine(weights, history):
    return sum(weight * d for weight, d in zip(weights.to(history[0]), history))


SOURCE = "Wizadwongsa et al. 2023, arXiv:2307.11118"

KNOBS = (
    Knob(
        "order", 2.5, "How many past steps to use; the fraction sets the momentum, strongest just above a whole number. A "
        "whole number = no momentum: 1 is Euler, 2 to 4 are ipndm. The paper's useful range is 1.5 to 3.5.",
        min=0.1, max=5.0, step=0.1,
    ),
    Knob(
        "variable_step", False, "Weigh past steps by their real, uneven lengths, which orders above 2 need on most "
        "schedulers. Off = as published: every step counts as equally long.", advanced=True,
    ),
)


def adams_order(knobs):
    """Warm-up and uneven steps hold published weights, made for even steps, to order 2."""
    k, _ = split_order(knobs["order"])
    return k if knobs["variable_step"] else min(k, 2)


def averaged_order(knobs):
    _, beta = split_order(knobs["order"])
    return adams_order(knobs) if beta == 1 else 1


def looks_back(knobs):
    return {"order": split_order(knobs["order"])[0]}


SOLVERS = {
    "ghvb": Solver(
        sample_ghvb, "momentum", "GHVB momentum", adams_order, 1, False, SOURCE,
        "few steps at high CFG, where multistep solvers ring; keeps their order",
        KNOBS,
        looks_back=looks_back,
    ),
    "heavy_ball": Solver(
        sample_heavy_ball, "momentum", "Heavy-ball momentum", averaged_order, 1, False, SOURCE,
        "few steps at high CFG; steadier than GHVB, but first order",
        KNOBS,
        looks_back=looks_back,
    ),
    "nesterov": Solver(
        sample_nesterov, "momentum", "Nesterov momentum", averaged_order, 1, False, SOURCE,
        "few steps at high CFG; first order, with less lag than heavy ball",
        KNOBS,
        looks_back=looks_back,
    ),
}
