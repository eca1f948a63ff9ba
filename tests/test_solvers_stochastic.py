"""Stochastic solvers on Gaussian data, where every step is affine in x and in the noise: exact moments, no sampling.

The one rule that is not affine, Langevin steps sized by each item's own norms, is sampled.
"""


import pytest
import torch
from comfyui_distillery.samplers.solvers import SOLVERS

from .problems import PATHS, assert_close, convergence, gaussian, graded, number, randn

every_path = pytest.mark.parametrize("name", PATHS)


def spread(name, steps):
    """Levels from near pure noise down to a level above 0."""
    return graded(steps, 10.0, 0.1, power=1.0) if name == "eps" else torch.linspace(1.0, 0.1, steps + 1, dtype=torch.float64)


def moments(key, name, sigmas, model=None, **knobs):
    """Mean and std of the result, and its response to the start, for a start that is distributed as it should be.

    Items of one batch: the mean start, one std away from it, and the mean start with one draw of the noise set to 1.
    """
    model = model or gaussian(PATHS[name], (1, 2, 2))
    _, mean, std = model._marginal(model.mean, sigmas[0])

    def answer(x, unit_draws):
        drawn = 0  # calls so far

        def noise_sampler(sigma, sigma_next):
            nonlocal drawn
            noise = torch.zeros_like(x)
            if unit_draws:
                noise[2 + drawn] = 1
            drawn += 1
            return noise

        return SOLVERS[key](model, x, sigmas, path=PATHS[name], noise_sampler=noise_sampler, **knobs), drawn

    _, draws = answer(mean, False)
    start = mean.repeat(2 + draws, 1, 1, 1)
    start[1] += std[0]
    result, _ = answer(start, True)
    responses = result[1:] - result[:1]
    return result[:1], responses.square().sum(0, keepdim=True).sqrt(), responses[:1], draws


def error(key, name, steps, **knobs):
    """How far mean and std of the result are from the data's, in stds."""
    sigmas = spread(name, steps)
    model = gaussian(PATHS[name], (1, 2, 2))
    mean, std, _, draws = moments(key, name, sigmas, model, **knobs)
    assert draws > 0
    _, true_mean, true_std = model._marginal(mean, sigmas[-1])
    return max(((mean - true_mean) / true_std).abs().max(), (std / true_std - 1).abs().max())


EVERYWHERE = {"sde_from": 1000.0, "sde_to": 0.0}  # sa_solver
ALL_ALONG = {"noise_from": 1000.0, "noise_to": 0.0}  # interpolant_sde
NOISE = [  # solver, knobs, steps, how far mean and std may be off
    ("edm_heun", {}, 60, 0.003),
    ("edm_heun", {"s_churn": 40.0, "s_tmin": 0.0, "s_tmax": 1000.0}, 60, 0.012),
    ("sa_solver", {"tau": 0.4, "tau_end": 0.4} | EVERYWHERE, 60, 0.0002),
    ("sa_solver", {"tau": 1.2, "tau_end": 0.2} | EVERYWHERE, 60, 0.002),
    ("sa_solver", {"sde_from": 0.8, "sde_to": 0.3, "pece": True}, 60, 0.0004),
    ("pc_langevin", {"predictor": "ancestral", "snr": 0.0}, 320, 0.01),
    ("pc_langevin", {"predictor": "reverse_diffusion", "snr": 0.0}, 320, 0.012),
    ("pc_langevin", {"predictor": "ancestral", "snr": 0.03, "corrector": "annealed", "corrector_steps": 3}, 320, 0.01),
    ("pc_langevin", {"snr": 0.03, "corrector": "annealed", "correct_from": 0.8, "correct_to": 0.2}, 320, 0.01),
    ("interpolant_sde", {}, 320, 0.01),
    ("interpolant_sde", {"diffusion": "sigma", "strength": 3.0} | ALL_ALONG, 320, 0.02),
    ("interpolant_sde", {"diffusion": "constant", "strength": 0.3} | ALL_ALONG, 320, 0.02),
    ("interpolant_sde", {"diffusion": "SBDM"} | ALL_ALONG, 320, 0.01),
    ("interpolant_sde", {"diffusion": "decreasing"} | ALL_ALONG, 320, 0.01),
    ("interpolant_sde", {"diffusion": "increasing-decreasing"} | ALL_ALONG, 320, 0.012),
    ("restart", {"repeats": 4, "restart_steps": 40}, 60, 0.003),
    ("restart", {"restart_min": 0.3, "restart_max": 1.0, "base": "euler", "restart_steps": 80}, 320, 0.015),
    ("dlg", {"chain_step": 0.01, "chain_steps": 50}, 60, 0.002),
]


@pytest.mark.parametrize("key, knobs, steps, tolerance", NOISE, ids=str)
@every_path
def test_marginals_are_those_of_the_data(name, key, knobs, steps, tolerance):
    assert error(key, name, steps, **knobs) < tolerance


@pytest.mark.parametrize("key, knobs", [("sa_solver", {}), ("interpolant_sde", {}), ("edm_heun", {"s_churn": 20.0})])
@every_path
def test_marginals_converge(name, key, knobs):
    """With the order of the deterministic part, or 1, on top of what noise renews."""
    errors = [float(error(key, name, n, **knobs)) for n in (40, 80, 160)]
    assert convergence(errors, [40, 80, 160]) > 0.8


class Consistency:
    """The consistency function of Gaussian data: where the ODE ends."""

    def __init__(self, name):
        self.teacher = gaussian(PATHS[name], (1, 2, 2))
        self.mean, self._marginal = self.teacher.mean, self.teacher._marginal

    def __call__(self, x, sigma):
        return self.teacher.exact(x, sigma, number(0.0))


@every_path
def test_ctm_gamma_1_is_exact_for_a_consistency_function(name):
    model, sigmas = Consistency(name), spread(name, 3)
    mean, std, response, _ = moments("ctm_gamma", name, sigmas, model, gamma=1.0)
    _, true_mean, true_std = model._marginal(mean, sigmas[-1])
    assert_close(mean, true_mean, 1e-12)
    assert_close(std, true_std, 1e-12)
    assert response.abs().max() < true_std.max()


@every_path
def test_ctm_gamma_of_an_ordinary_denoiser_narrows_the_data_at_any_number_of_steps(name):
    model = gaussian(PATHS[name], (1, 2, 2))
    for steps in (40, 160):
        sigmas = spread(name, steps)
        _, std, _, _ = moments("ctm_gamma", name, sigmas, model, gamma=0.7)
        assert (std / model._marginal(std, sigmas[-1])[2]).max() < 0.95


POINT = [
    *[("ctm_gamma", {"gamma": gamma}) for gamma in (0.1, 0.5, 1.0)],
    *[("interpolant_sde", {"diffusion": w} | ALL_ALONG) for w in ("sigma", "constant", "SBDM")],
    ("pc_langevin", {"predictor": "ancestral", "snr": 0.0}),
    ("sa_solver", {"tau": 0.5} | EVERYWHERE),
    ("dlg", {"chain_step": 2.0}),
    ("edm_heun", {"s_churn": 2.0}),
    ("restart", {}),
]


@pytest.mark.parametrize("key, knobs", POINT, ids=str)
@every_path
def test_noise_is_at_its_level_after_any_number_of_steps_when_the_data_is_one_point(name, key, knobs):
    """Then predictions are exact, and what remains is the noise that the solver itself puts in and takes out."""
    model = gaussian(PATHS[name], (1, 2, 2))
    model = type(model)(model.path, model.mean, torch.zeros_like(model.std))
    sigmas = spread(name, 5)
    mean, std, _, _ = moments(key, name, sigmas, model, **knobs)
    assert_close(mean, model.path.alpha(sigmas[-1]) * model.mean, 1e-12)
    assert_close(std, sigmas[-1].expand_as(std), 1e-12)


def still(top):
    """Levels so near each other that only what a solver does at one level counts."""
    return top * (1 - 1e-9 * torch.arange(61, dtype=torch.float64))


@pytest.mark.parametrize("snr", [0.1, 0.3])
@every_path
def test_langevin_steps_settle_where_theory_says(name, snr):
    """x' = (1 - e / v) x + sqrt(2 e) n, e = 2 (snr sigma)^2, has the stationary variance v / (1 - e / 2v)."""
    model = gaussian(PATHS[name], (1, 2, 2))
    sigmas = still(number(0.6))
    _, std, response, _ = moments("pc_langevin", name, sigmas, model, snr=snr, corrector="annealed", corrector_steps=20)
    variance = model._marginal(model.mean, sigmas[-1])[2] ** 2
    share = (snr * sigmas[-1]) ** 2 / variance
    assert_close(response, variance.sqrt() * (1 - 2 * share) ** 1200, 1e-6)
    settled = (variance / (1 - share)).sqrt()
    assert ((std / settled - 1).abs() < response / settled + 1e-6).all()


@every_path
def test_langevin_steps_by_their_norms_keep_the_marginal(name):
    """300 steps, sampled: 512 items of 256 elements. The bias of a step of this size, 2 snr^2 at most, is told apart."""
    model, snr = gaussian(PATHS[name], (4, 8, 8)), 0.16
    sigmas = still(number(0.6))[:16]
    x = model.start(sigmas[0], batch=512)
    generator = torch.Generator().manual_seed(1)

    def noise_sampler(sigma, sigma_next):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    run = SOLVERS["pc_langevin"]
    result = run(model, x, sigmas, path=PATHS[name], noise_sampler=noise_sampler, snr=snr, corrector_steps=20)
    _, mean, std = model._marginal(x, sigmas[-1])
    z = (result - mean) / std
    assert z.mean().abs() < 0.01
    assert -0.01 < z.square().mean() - 1 < 2 * snr**2
    assert (z * (x - mean) / std).mean() < 0.2, "it has not moved"


@pytest.mark.parametrize("chain_step", [0.2, 2.0])
@every_path
def test_a_dlg_chain_settles_where_theory_says(name, chain_step):
    """x' = a x + sigma sqrt(1 - k^2) n, k = exp(-step / 2), a = 1 - (1 - k) sigma^2 / v."""
    model = gaussian(PATHS[name], (1, 2, 2))
    sigmas = still(number(0.6))[:2]
    _, std, response, _ = moments("dlg", name, sigmas, model, chain_step=chain_step, chain_steps=1000)
    variance, k = model._marginal(model.mean, sigmas[-1])[2] ** 2, torch.exp(number(-chain_step / 2))
    settled = variance * (1 + k) / (2 - (1 - k) * sigmas[-1] ** 2 / variance)
    assert response.abs().max() < 1e-3
    assert_close(std, settled.sqrt(), 1e-6)


def test_a_dlg_chain_visits_every_mode():
    """Two points at +-1 of a line and noise 1: from one of them, half the chains end by the other."""

    def model(x, sigma):
        return torch.tanh(x / sigma.reshape(-1, 1, 1, 1) ** 2)

    x = 1 + randn(2000, 1, 1, 1)
    generator = torch.Generator().manual_seed(1)

    def run(chain_steps):
        return SOLVERS["dlg"](
            model, x, number([1.001, 1.0, 0.5, 0.2, 0.0]), path=PATHS["eps"], chain_sigma=1.0, chain_steps=chain_steps,
            chain_step=0.5, noise_sampler=lambda sigma, sigma_next: torch.randn(x.shape, generator=generator).to(x),
        )  # fmt: skip

    assert (run(1).sign() == 1).double().mean() > 0.75
    assert (run(60).sign() == 1).double().mean() == pytest.approx(0.5, abs=0.04)
    assert ((run(60).abs() - 1).abs() < 0.3).double().mean() > 0.95
