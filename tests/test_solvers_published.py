"""Solvers against their published form, and against others' code for the same method."""

from itertools import pairwise

import pytest
import torch
from comfyui_distillery.samplers.core import to_d
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.momentum import ghvb_weights

from .problems import EPS, FLOW, PATHS, SIGMAS, assert_close, gaussian, mixture, number

every_path = pytest.mark.parametrize("name", PATHS)

ADAMS_BASHFORTH = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def ipndm(model, x, sigmas, max_order):
    history = []
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma.expand(len(x)))
        history = [to_d(x, sigma, denoised), *history][:max_order]
        slope = sum(weight * d for weight, d in zip(ADAMS_BASHFORTH[len(history)], history))
        x = denoised if sigma_next == 0 else x + (sigma_next - sigma) * slope
    return x


@pytest.mark.parametrize("key", ["ghvb", "heavy_ball", "nesterov"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@every_path
def test_whole_orders_are_ipndm(name, order, key):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = model.start(sigmas[0])
    assert_close(SOLVERS[key](model, x, sigmas, order=float(order)), ipndm(model, x, sigmas, order), 1e-13)


def published_momentum(method, model, x, sigmas, beta):
    """The three recursions as the paper states them, for k = 2, with v before the first step set to its d."""
    v, v_before, d_before = None, None, None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        d = to_d(x, sigma, model(x, sigma.expand(len(x))))
        slope = d if i == 0 else (3 * d - d_before) / 2
        if method == "ghvb":
            v = d if i == 0 else (1 - beta) * v + beta * d
            u = v if i == 0 else ((2 + beta) * v - (2 - beta) * v_before) / (2 * beta)
        else:
            v = slope if i == 0 else (1 - beta) * v + beta * slope
            u = v if method == "heavy_ball" else (1 - beta) * v + beta * slope
        x = x + (sigma_next - sigma) * u
        v_before, d_before = v, d
    return x


@pytest.mark.parametrize("method", ["ghvb", "heavy_ball", "nesterov"])
@every_path
def test_fractional_orders_are_the_published_recursions(name, method):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name][:-1])
    x = model.start(sigmas[0])
    ours = SOLVERS[method](model, x, sigmas, order=1.3)
    assert_close(ours, published_momentum(method, model, x, sigmas, 0.3), 1e-13)


def test_variable_step_changes_nothing_on_even_steps_and_something_on_uneven_ones():
    model, sigmas = gaussian(FLOW), torch.linspace(1, 0.1, 10, dtype=torch.float64)
    x = model.start(sigmas[0])
    for key in ("ghvb", "heavy_ball", "nesterov"):
        for even, grid in ((True, sigmas), (False, sigmas**2)):
            one, other = (SOLVERS[key](model, x, grid, order=3.4, variable_step=flag) for flag in (False, True))
            assert torch.allclose(one, other, rtol=0, atol=1e-12) == even


@pytest.mark.parametrize("b", [0.1, 0.5, 0.8, 1.0])
def test_ghvb_weights_are_the_papers_on_even_steps(b):
    table = {  # momentum_scheduler.py of the paper's repository, in b
        1: ([b], 1),
        2: ([2 + b, -(2 - b)], 2),
        3: ([18 + 5 * b, -(24 - 8 * b), 6 - b], 12),
        4: ([46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)], 24),
        5: ([1650 + 251 * b, -(3420 - 646 * b), 2880 - 264 * b, -(1380 - 106 * b), 270 - 19 * b], 720),
    }
    grid = torch.arange(12, dtype=torch.float64)
    for k, (numerators, denominator) in table.items():
        torch.testing.assert_close(ghvb_weights(grid, 8, k, b), number(numerators) / denominator / b, rtol=1e-11, atol=0)


TABLE = 6.2 * torch.linspace(0, 1, 12, dtype=torch.float64).sqrt() - 3.5  # coarse: kinks that matter
CONJUGATE = [(EPS, [14.6, 6, 2, 0.7, 0.1]), (FLOW, [0.97, 0.9, 0.5, 0.1]), (Path("eps", log_sigmas=TABLE), [12, 3, 0.3])]


@pytest.mark.parametrize("path, sigmas", CONJUGATE, ids=["eps", "flow", "table"])
@pytest.mark.parametrize("lambda_c", [-1.0, 0.3])
def test_lambda_ddim_is_the_published_update(lambda_c, path, sigmas):
    """In u = exp(lambda_c t) x on VE coordinates, with the integral over sigma as a plain fine sum."""
    model, sigmas = gaussian(path), number(sigmas)
    start = x = model.start(sigmas[0])
    for s, s_next in pairwise(sigmas):
        (x_ve, ve), ve_next, t, t_next = path.to_ve(x, s), path.to_ve(x, s_next)[1], path.time(s), path.time(s_next)
        eps = (x_ve - model(x, s)) / ve
        fine = torch.linspace(ve.log(), ve_next.log(), 400_001, dtype=torch.float64).exp()
        integral = torch.trapezoid((lambda_c * path.time(path.sigma(-fine.log()))).exp(), fine)
        u = (lambda_c * t).exp() * x_ve
        u = u + lambda_c * u * (t_next - t) + eps * integral
        x, _ = path.from_ve((-lambda_c * t_next).exp() * u, ve_next)
    result = SOLVERS["lambda_ddim"](model, start, sigmas, path=path, lambda_c=lambda_c)
    assert_close(result, x, 1e-9)


def test_lambda_ddim_at_0_is_diffusers_ddim():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)
    signal = scheduler.alphas_cumprod[scheduler.timesteps]
    sigmas = torch.cat([((1 - signal) / signal).sqrt(), torch.zeros(1)])
    model = gaussian(EPS, dtype=torch.float32)
    x = model.start(sigmas[0])
    ours = SOLVERS["lambda_ddim"](model, x, sigmas, path=EPS)
    theirs, *_ = EPS.to_vp(x, sigmas[0])
    for t, sigma in zip(scheduler.timesteps, sigmas):
        ve = theirs * (1 + sigma**2).sqrt()
        theirs = scheduler.step(to_d(ve, sigma, model(ve, sigma)), t, theirs, eta=0.0).prev_sample
    assert_close(ours, theirs, 1e-5)
