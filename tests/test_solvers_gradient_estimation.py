"""Gradient estimation against the published sampler, and its noise against exact marginals."""

from itertools import pairwise

import pytest
import torch
from comfyui_distillery.samplers.core import to_d
from comfyui_distillery.samplers.noise import gaussian as noise_of
from comfyui_distillery.samplers.solvers import SOLVERS

from .problems import EPS, PATHS, SIGMAS, assert_close, gaussian, mixture, number, randn
from .test_solvers_published import ipndm

every_path = pytest.mark.parametrize("name", PATHS)
gradient = SOLVERS["gradient_estimation"]


@every_path
def test_gamma_one_and_a_half_is_ipndm_of_order_2(name):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = model.start(sigmas[0])
    knobs = {"gamma": 1.5, "gamma_end": 1.5, "last_step_extrapolation": False, "path": PATHS[name]}
    assert_close(gradient(model, x, sigmas, **knobs), ipndm(model, x, sigmas, 2), 1e-13)


def published_gradient_estimation(path, model, x, sigmas, gammas, mu, noises):
    """smalldiffusion's ``samples`` in VE coordinates, with its average of the noise predictions, a gamma for each step."""
    before = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        back, s = path.from_ve(x, sigma)
        eps = (x - model(back, s)) / sigma
        average = eps if before is None else eps * gammas[i] + before * (1 - gammas[i])
        low = (sigma_next / sigma**mu) ** (1 / (1 - mu))
        x = x - (sigma - low) * average + (sigma_next**2 - low**2).sqrt() * noises[i]
        before = eps
    return x


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_on_ve_paths_it_is_the_published_sampler_to_the_last_step(mu):
    model, sigmas = mixture(EPS), number(SIGMAS["eps"])
    x = model.start(sigmas[0])
    gammas = [1.0, 2.5, 2.0, 1.5, 1.0]
    noise = noise_of(x, range(4))
    noises = [noise(None, None) for _ in range(4)] + [torch.zeros_like(x)]
    expected = published_gradient_estimation(EPS, model, x, sigmas, gammas, mu, noises)
    ours = gradient(model, x, sigmas, path=EPS, noise_sampler=noise_of(x, range(4)), gamma=2.5, gamma_end=1.0, mu=mu)
    assert_close(ours, expected, 1e-12)
    plain = gradient(model, x, sigmas, path=EPS, noise_sampler=noise_of(x, range(4)), gamma=2.5, gamma_end=1.0, mu=mu,
                     last_step_extrapolation=False)  # fmt: skip
    assert torch.equal(plain, ours), "gamma 1 at the last step extrapolates nothing"


def test_the_last_step_goes_beyond_the_prediction_unless_told_not_to():
    model, sigmas = mixture(EPS), number(SIGMAS["eps"])
    x, seen = model.start(sigmas[0]), []
    ends = {}
    for flag in (True, False):
        ends[flag] = gradient(model, x, sigmas, callback=seen.append, path=EPS, last_step_extrapolation=flag)
    assert torch.equal(ends[False], seen[-1]["denoised"])
    (before, last) = (to_d(state["x"], state["sigma"], state["denoised"]) for state in seen[3:5])
    assert_close(ends[True], ends[False] - sigmas[4] * (last - before), 1e-13)


@every_path
@pytest.mark.parametrize("mu", [0.3, 0.5, 0.7])
def test_fresh_noise_keeps_the_marginal(name, mu):
    """Many small steps with gamma 1 on Gaussian data end in its own mean and spread, from sigma 1 on flow."""
    model = gaussian(PATHS[name], (3, 1, 1))
    top, bottom = (20.0, 0.3) if name == "eps" else (1.0, 0.2)
    sigmas = torch.linspace(top ** (1 / 3), bottom ** (1 / 3), 301, dtype=torch.float64) ** 3
    x = model.start(sigmas[0], batch=4000)
    noise = iter(range(1000))
    knobs = {"gamma": 1.0, "gamma_end": 1.0, "mu": mu, "path": PATHS[name]}
    end = gradient(model, x, sigmas, noise_sampler=lambda a, b: randn(*x.shape, seed=next(noise)), **knobs)
    _, mean, std = model._marginal(end, sigmas[-1])
    assert (end.mean(0) - mean[0]).abs().max() < 0.06
    assert (end.std(0) / std[0] - 1).abs().max() < 0.05


def test_gammas_are_taken_one_a_step():
    model, sigmas = mixture(EPS), number(SIGMAS["eps"])
    x = model.start(sigmas[0])
    ramp = SOLVERS["gradient_estimation"](model, x, sigmas, path=EPS, gamma=2.0, gamma_end=1.1)
    listed = SOLVERS["gradient_estimation"](model, x, sigmas, path=EPS, gammas=[9.9, 2.0, 1.7, 1.4, 1.1])  # the first counts for nothing
    assert_close(listed, ramp, 1e-13)
    with pytest.raises(ValueError, match="gammas holds 2 numbers and sigmas has 5 steps"):
        SOLVERS["gradient_estimation"](model, x, sigmas, path=EPS, gammas=[1.0, 2.0])
