"""Stochastic solvers beside core's own functions of the same methods: where they agree, and where core's are wrong."""

from types import SimpleNamespace

import comfy.k_diffusion.sampling
import pytest
import tiny
import torch
from comfyui_distillery.samplers.noise import fixed
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.sa_solver import taus

from tests.problems import EPS, FLOW, assert_close, gaussian, number, randn

PATHS = {"eps": EPS, "flow": FLOW}


def like_core(name, dtype=torch.float64):
    """A Gaussian problem as core's samplers want it: with a genuine model beside it, for its model_sampling."""

    class Model:
        problem = gaussian(PATHS[name], dtype=dtype)
        inner_model = SimpleNamespace(model_patcher=tiny.build(name)[0])

        def __call__(self, x, sigma):
            return self.problem(x, sigma)

    return Model()


def test_core_heun_with_churn_leaves_the_marginal_on_flow_and_ours_does_not():
    """20,000 samples, 40 steps to sigma 0.1 at s_churn 40: core adds VE noise and keeps the signal as large as before."""
    model = gaussian(FLOW)
    sigmas = torch.linspace(1, 0.1, 41, dtype=torch.float64)
    x = model.start(sigmas[0], batch=20_000)
    _, mean, std = model._marginal(x, sigmas[-1])
    generator = torch.Generator().manual_seed(1)
    knobs = {"s_churn": 40.0, "s_tmin": 0.0, "s_tmax": 1000.0}

    def spread(result):
        z = (result - mean) / std
        return max(z.mean(0).abs().max(), (z.square().mean(0) - 1).abs().max())

    torch.manual_seed(1)
    core = comfy.k_diffusion.sampling.sample_heun(model, x, sigmas, disable=True, **knobs)
    ours = SOLVERS["edm_heun"](
        model, x, sigmas, path=FLOW, noise_sampler=lambda *_: torch.randn(x.shape, generator=generator).to(x), **knobs
    )
    assert spread(ours) < 0.06
    assert spread(core) > 0.3


def test_edm_heun_is_core_heun_on_eps():
    model, sigmas = gaussian(EPS), number([14.6, 6.0, 2.0, 0.7, 0.2, 0.0])
    x, knobs = model.start(sigmas[0]), {"s_churn": 1.0, "s_tmax": 10.0, "s_tmin": 0.3, "s_noise": 1.003}
    torch.manual_seed(3)
    core = comfy.k_diffusion.sampling.sample_heun(model, x, sigmas, disable=True, **knobs)
    torch.manual_seed(3)
    ours = SOLVERS["edm_heun"](model, x, sigmas, path=EPS, noise_sampler=lambda *_: torch.randn_like(x), **knobs)
    assert_close(ours, core, 1e-13)


@pytest.mark.parametrize("name", PATHS)
def test_ctm_gamma_1_is_core_lcm(name):
    model = like_core(name)
    sigmas = number([14.6, 6.0, 2.0, 0.7, 0.0] if name == "eps" else [1.0, 0.8, 0.5, 0.2, 0.0])
    x = model.problem.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(3)]
    core = comfy.k_diffusion.sampling.sample_lcm(model, x, sigmas, disable=True, noise_sampler=fixed(noises))
    ours = SOLVERS["ctm_gamma"](model, x, sigmas, path=PATHS[name], noise_sampler=fixed(noises), gamma=1.0)
    assert_close(ours, core, 1e-13)


@pytest.mark.parametrize("predictor, corrector", [(1, 0), (2, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("tau, tau_end", [(0.0, 0.0), (1.0, 1.0), (1.2, 0.3)])
def test_sa_solver_is_core_sa_solver_with_a_tau_of_ours(tau, tau_end, predictor, corrector):
    """Core's node has a constant tau in a window; its function takes any, and agrees."""
    model, sigmas = like_core("eps"), number([14.6, 6.0, 2.0, 0.9, 0.4, 0.1, 0.0])
    x = model.problem.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(6)]
    orders = {"predictor_order": predictor, "corrector_order": corrector}
    values = dict(zip(sigmas[1:].tolist(), taus(EPS, sigmas, tau, tau_end, 3.0, 0.3)))
    core = comfy.k_diffusion.sampling.sample_sa_solver(
        model, x, sigmas, disable=True, noise_sampler=fixed(noises), tau_func=lambda sigma: values[float(sigma)], **orders
    )
    ours = SOLVERS["sa_solver"](
        model, x, sigmas, path=EPS, noise_sampler=fixed(noises), tau=tau, tau_end=tau_end, sde_from=3.0, sde_to=0.3, **orders
    )
    assert_close(ours, core, 1e-9)


def test_sa_solver_is_core_sa_solver_from_sigma_1_of_flow():
    """But for the 0.0001 by which core moves the first sigma."""
    model, sigmas = like_core("flow"), torch.linspace(1, 0, 9, dtype=torch.float64)
    x = model.problem.start(sigmas[0])
    core = comfy.k_diffusion.sampling.sample_sa_solver(model, x, sigmas, disable=True, tau_func=lambda sigma: 0.0)
    assert_close(SOLVERS["sa_solver"](model, x, sigmas, path=FLOW, tau=0.0, tau_end=0.0), core, 1e-3)
