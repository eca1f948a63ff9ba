"""Stochastic solvers: the known methods they become in a limit, their coefficients, and what they refuse."""

from itertools import pairwise

import pytest
import torch
from comfyui_distillery.samplers.core import to_d
from comfyui_distillery.samplers.noise import fixed
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.interpolant_sde import turnover
from comfyui_distillery.samplers.solvers.restart import restart_leg
from comfyui_distillery.samplers.solvers.sa_solver import plan, taus

from .problems import EPS, FLOW, PATHS, SIGMAS, assert_close, convergence, gaussian, graded, mixture, number, randn
from .test_solvers import RANGE, solved

every_path = pytest.mark.parametrize("name", PATHS)


def no_noise(sigma, sigma_next):
    raise AssertionError("noise was drawn")


def heun(model, x, sigmas):
    for sigma, sigma_next in pairwise(sigmas):
        d = to_d(x, sigma, model(x, sigma))
        ahead = x + (sigma_next - sigma) * d
        if sigma_next > 0:
            d = (d + to_d(ahead, sigma_next, model(ahead, sigma_next))) / 2
        x = x + (sigma_next - sigma) * d
    return x


QUIET = {
    "edm_heun": [{"s_churn": 0.0}, {"s_tmin": 20.0, "s_tmax": 30.0}],
    "dlg": [{"chain_steps": 0}],
    "restart": [{"repeats": 0}],
}


@pytest.mark.parametrize("key, knobs", [(key, knobs) for key, rows in QUIET.items() for knobs in rows], ids=str)
@every_path
def test_without_noise_they_are_heun(name, key, knobs):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = model.start(sigmas[0])
    result = SOLVERS[key](model, x, sigmas, path=PATHS[name], noise_sampler=no_noise, **knobs)
    assert_close(result, heun(model, x, sigmas), 1e-13)


SILENT = [
    ("sa_solver", {"tau": 0.0, "tau_end": 0.0}),
    ("pc_langevin", {"snr": 0.0}),
    ("interpolant_sde", {"strength": 0.0}),
    ("ctm_gamma", {"gamma": 0.0}),
]


@pytest.mark.parametrize("key, knobs", SILENT, ids=str)
@every_path
def test_at_0_no_noise_is_drawn(name, key, knobs):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    SOLVERS[key](model, model.start(sigmas[0]), sigmas, path=PATHS[name], noise_sampler=no_noise, **knobs)


@every_path
def test_ctm_gamma_1_is_lcm(name):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = start = model.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(4)]
    for sigma, sigma_next, noise in zip(sigmas, sigmas[1:], [*noises, 0]):
        x = PATHS[name].alpha(sigma_next) * model(x, sigma) + sigma_next * noise
    result = SOLVERS["ctm_gamma"](model, start, sigmas, path=PATHS[name], noise_sampler=fixed(noises), gamma=1.0)
    assert_close(result, x, 1e-14)


@every_path
def test_ctm_gamma_is_the_published_update(name):
    """Jump to sqrt(1 - gamma^2) of the next level by DDIM, then scale and add the noise that is missing."""
    path, gamma, sigmas = PATHS[name], 0.7, number(SIGMAS[name][1:-1])
    model = mixture(path)
    x = start = model.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(3)]
    for sigma, sigma_next, noise in zip(sigmas, sigmas[1:], noises):
        denoised, low = model(x, sigma), (1 - gamma**2) ** 0.5 * sigma_next
        jumped = x + (low - sigma) * (x - denoised) / sigma
        scale = path.alpha(sigma_next) / path.alpha(low)
        x = scale * jumped + (sigma_next**2 - (scale * low) ** 2).sqrt() * noise
    result = SOLVERS["ctm_gamma"](model, start, sigmas, path=path, noise_sampler=fixed(noises), gamma=gamma)
    assert_close(result, x, 1e-13)


@every_path
def test_edm_heun_is_the_published_algorithm_in_ve_noise(name):
    """Churn by itself: to sigma_hat in VE coordinates, and the step from there."""
    path, sigmas = PATHS[name], number(SIGMAS[name][1:-1])
    model = mixture(path)
    x = start = model.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(3)]
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        ve, s = path.to_ve(x, sigma)
        s_hat = s * (1 + 1.2 / 3)
        x, sigma = path.from_ve(ve + 1.003 * (s_hat**2 - s**2).sqrt() * noises[i], s_hat)
        x = heun(model, x, torch.stack([sigma, sigma_next]))
    result = SOLVERS["edm_heun"](model, start, sigmas, path=path, noise_sampler=fixed(noises), s_churn=1.2, s_noise=1.003)
    assert_close(result, x, 1e-13)


@pytest.mark.parametrize("predictor, draws", [("ode", 0), ("ancestral", 1), ("reverse_diffusion", 1)])
@every_path
def test_pc_langevin_is_the_published_algorithm_in_ve_coordinates(name, predictor, draws):
    path, snr, sigmas = PATHS[name], 0.16, number(SIGMAS[name][1:-1])
    model = mixture(path)
    x = start = model.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(12)]
    draw = iter(noises)
    for sigma, sigma_next in pairwise(sigmas):
        (ve, s), (_, s_next) = path.to_ve(x, sigma), path.to_ve(x, sigma_next)
        score = (model(x, sigma) - ve) / s**2
        gained = s**2 - s_next**2
        if predictor == "ode":
            ve = ve + (s - s_next) * s * score
        else:
            added = gained if predictor == "reverse_diffusion" else gained * s_next**2 / s**2
            ve = ve + gained * score + added.sqrt() * next(draw)
        for _ in range(2):
            x, _ = path.from_ve(ve, s_next)
            score, noise = (model(x, sigma_next) - ve) / s_next**2, next(draw)
            size = 2 * (snr * noise.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)).view(-1, 1, 1, 1) ** 2
            ve = ve + size * score + (2 * size).sqrt() * noise
        x, _ = path.from_ve(ve, s_next)
    result = SOLVERS["pc_langevin"](
        model, start, sigmas, path=path, noise_sampler=fixed(noises), predictor=predictor, corrector_steps=2, snr=snr
    )
    assert_close(result, x, 1e-12)


SIT = {  # diffusion coefficients of SiT's path.py, with s the noise level
    "sigma": lambda s: s,
    "constant": lambda s: torch.ones_like(s),
    "SBDM": lambda s: s / (1 - s),
    "decreasing": lambda s: (torch.cos(torch.pi * (1 - s)) + 1) ** 2 / 4,
    "increasing-decreasing": lambda s: torch.sin(torch.pi * (1 - s)) ** 2,
}


@pytest.mark.parametrize("diffusion", SIT)
@every_path
def test_interpolant_turnover_is_the_integral_of_sits_coefficient(name, diffusion):
    sigmas = number(SIGMAS[name][1:-1])
    s = sigmas if name == "flow" else sigmas / (1 + sigmas)
    for k, high, low in zip(turnover(PATHS[name], sigmas, diffusion), s, s[1:]):
        fine = torch.linspace(low, high, 200_001, dtype=torch.float64)
        assert k == pytest.approx(float(torch.trapezoid(SIT[diffusion](fine) / fine**2, fine)), rel=1e-8)


@pytest.mark.parametrize("diffusion", SIT)
def test_interpolant_sde_is_sits_euler_maruyama_in_the_limit(diffusion):
    """With the same noise the paths meet as steps get smaller."""
    model = mixture(FLOW)
    x0 = model.start(number(0.95))
    gaps, counts = [], [100, 400, 1600]
    fine = [randn(*x0.shape, seed=i) for i in range(counts[-1])]
    for n in counts:
        each = counts[-1] // n
        noises = [sum(fine[i * each : (i + 1) * each]) / each**0.5 for i in range(n)]
        sigmas = torch.linspace(0.95, 0.1, n + 1, dtype=torch.float64)
        x = x0
        for s, s_next, noise in zip(sigmas, sigmas[1:], noises):
            h, w, denoised = s - s_next, 0.5 * SIT[diffusion](s), model(x, s)
            x = x - to_d(x, s, denoised) * h - w * (x - (1 - s) * denoised) / s**2 * h + (2 * w * h).sqrt() * noise
        knobs = {"diffusion": diffusion, "strength": 0.5, "noise_from": 1000.0, "noise_to": 0.0}
        result = SOLVERS["interpolant_sde"](model, x0, sigmas, path=FLOW, noise_sampler=fixed(noises), **knobs)
        gaps.append((result - x).abs().max())
    assert gaps[-1] < 0.03 and convergence(gaps, counts) > 0.7


@every_path
def test_sbdm_at_strength_1_is_ancestral(name):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = model.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(4)]

    def run(key, **knobs):
        return SOLVERS[key](model, x, sigmas, path=PATHS[name], noise_sampler=fixed(noises), **knobs)

    sbdm = run("interpolant_sde", diffusion="SBDM", noise_to=0.0)
    assert_close(sbdm, run("pc_langevin", predictor="ancestral", snr=0.0), 1e-13)
    tau = {"predictor_order": 1, "corrector_order": 0, "sde_from": 1000.0, "sde_to": 0.0}
    assert_close(sbdm, run("sa_solver", **tau), 1e-13)


@pytest.mark.parametrize("predictor, corrector", [(3, 4), (4, 0), (4, 4)])
@every_path
def test_sa_solver_reaches_order_4(name, predictor, corrector):
    model, x, exact = solved(gaussian, name)
    counts = [320, 640, 1280]
    knobs = {"tau": 0.0, "tau_end": 0.0, "predictor_order": predictor, "corrector_order": corrector}
    errors = [
        (SOLVERS["sa_solver"](model, x, graded(n, *RANGE[name]), path=PATHS[name], **knobs) - exact).abs().max() for n in counts
    ]
    assert convergence(errors, counts) == pytest.approx(SOLVERS["sa_solver"].declared_order(**knobs), abs=0.2)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@every_path
def test_sa_solver_weights_are_exact_for_polynomials_in_lambda(name, tau):
    path, sigmas = PATHS[name], number(SIGMAS[name][1:-1])
    lam, i = path.lam(sigmas), 2
    steps = plan(path, sigmas, 3, 4, [tau] * 3)
    fine = torch.linspace(lam[i], lam[i + 1], 400_001, dtype=torch.float64)
    growth = (1 + tau**2) * torch.exp((1 + tau**2) * (fine - lam[i + 1])) * path.alpha(sigmas[i + 1])
    for kind, newest, count in (("predictor", i, 3), ("corrector", i + 1, 4)):
        nodes = lam[newest + 1 - count : newest + 1].flip(0)
        for degree in range(count):
            got = sum(weight * node**degree for weight, node in zip(steps[i][kind], nodes))
            assert_close(got, torch.trapezoid(growth * fine**degree, fine), 1e-8)
    assert steps[i]["fresh"] == pytest.approx(float(sigmas[i + 1] * (-torch.expm1(-2 * tau**2 * (lam[i + 1] - lam[i]))).sqrt()))


def test_sa_solver_converges_from_sigma_1_of_flow():
    model = gaussian(FLOW)
    x = model.start(number(1.0))
    counts = [40, 80, 160]
    exact = model.exact(x, number(1.0), number(0.0))
    grids = [torch.linspace(1, 0, n + 1, dtype=torch.float64) for n in counts]
    errors = [(SOLVERS["sa_solver"](model, x, grid, path=FLOW, tau=0.0, tau_end=0.0) - exact).abs().max() for grid in grids]
    assert errors[0] < 0.01 and convergence(errors, counts) > 1.7


def test_tau_goes_evenly_in_lambda_from_one_end_of_its_range_to_the_other():
    sigmas = torch.exp(-torch.arange(7, dtype=torch.float64))
    assert_close(number(taus(EPS, sigmas, 1.0, 0.2, 0.4, 0.01)), number([1.0, 0.7333333333333333, 0.4666666666666666, 0.2, 0, 0]), 1e-12)
    assert taus(EPS, sigmas, 1.0, 0.2, 0.4, 0.2) == [1.0, 0, 0, 0, 0, 0]
    assert taus(FLOW, number([1.0, 0.5, 0.0]), 0.7, 0.2, 1000.0, 0.0) == [0.7, 0]


def test_restart_goes_from_the_nearest_level_up_and_down_again():
    at, leg = restart_leg(number(SIGMAS["eps"]), 0.15, 2.0, 4)
    assert at == 4 and leg[0] == 2.0 and leg[-1] == 0.2 and len(leg) == 5
    assert_close((leg ** (1 / 7)).diff(), (leg ** (1 / 7)).diff().mean().expand(4), 1e-12)
    assert restart_leg(number([0.5, 0.3, 0.1, 0.0]), 0.1, 0.6, 1)[1].tolist() == [0.5, 0.1]
    calls = []

    def model(x, sigma):
        calls.append(round(float(sigma[0]), 4))
        return x / 2

    knobs = {"base": "euler", "restart_min": 0.2, "restart_max": 0.7, "restart_steps": 1, "repeats": 2}
    SOLVERS["restart"](model, randn(1, 1, 2, 2), number(SIGMAS["eps"]), path=EPS, **knobs)
    assert calls == [14.6, 6.0, 2.0, 0.7, 0.7, 0.7, 0.2]


REFUSED = {
    "restart_min is 0.6 and restart_max 0.1: the range is empty": ("restart", {"restart_min": 0.6, "restart_max": 0.1}),
    "restart_min is 0.1 and restart_max 0.15: .* Use more steps": ("restart", {"restart_max": 0.15}),
    "chain_sigma is 0.6: .* Use 2 steps": ("dlg", {}),
    "s_tmin is 2 and s_tmax 1": ("edm_heun", {"s_tmin": 2.0, "s_tmax": 1.0}),
    "sde_to is 0.5 and sde_from 0.5": ("sa_solver", {"sde_to": 0.5, "sde_from": 0.5}),
    "noise_to is 2 and noise_from 1": ("interpolant_sde", {"noise_to": 2.0, "noise_from": 1.0}),
    "correct_to is 2 and correct_from 1": ("pc_langevin", {"correct_to": 2.0, "correct_from": 1.0}),
}


@pytest.mark.parametrize("message, key, knobs", [(message, *row) for message, row in REFUSED.items()])
def test_refused_before_the_first_call(message, key, knobs):
    def model(x, sigma):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=message):
        SOLVERS[key](model, randn(1, 2, 3, 2), number([2.0, 0.0] if key == "dlg" else SIGMAS["eps"]), path=EPS, **knobs)
