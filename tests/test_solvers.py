"""Every solver in SOLVERS: declared order against exact answers, and what a caller may rely on."""

from functools import cache
from itertools import pairwise
from math import nextafter

import pytest
import torch
from comfyui_distillery.samplers.core import to_d
from comfyui_distillery.samplers.noise import gaussian as noise_of
from comfyui_distillery.samplers.noise import item_seeds
from comfyui_distillery.samplers.solvers import SOLVERS

from .problems import EPS, FLOW, PATHS, SIGMAS, assert_close, convergence, gaussian, graded, mixture, number

AVERAGED = [{"order": 0.8}, {"order": 1.5}, {"order": 2.5}, {"order": 3.0, "variable_step": True}]
SETTINGS = {  # one row per solver: the knobs, all without noise, whose order of convergence is measured
    "auto": [],  # it runs others
    "ghvb": [{"order": o} for o in (0.8, 1.0, 1.5, 2.0, 4.0)]
    + [{"order": o, "variable_step": True} for o in (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)],
    "heavy_ball": AVERAGED,
    "nesterov": AVERAGED,
    "lambda_ddim": [{"lambda_c": value} for value in (-0.5, -0.3, 0.0, 0.5, 1.0)],
    "bdia": [{"gamma": value} for value in (0.0, 0.5, 1.0)],
    "edict": [{}, {"p": 0.8}, {"p": 1.0}],
    "paradigms": [{"tolerance": 0.0}, {"window": 1}],
    "time_shift": [{"window": 0.0}],
    "gaussian_teleport": [{"skip": 0.0}],
    "gradient_estimation": [{}, {"gamma": 1.5}, {"gamma": 2.0, "gamma_end": 1.0}],
    "per_step": [{"prediction": p, "order": o} for p in ("data", "noise", "slope") for o in (2, 3)]
    + [{"prediction": p, "order": 2, "corrector": True} for p in ("data", "noise", "slope")]
    + [{"prediction": p, "order": o, "weights": "dpm_solver"} for p in ("data", "noise") for o in (2, 3)],
    "dpm_solver": [{"order": o} for o in (1, 2, 3)],
    "dpm_solver_pp": [
        {"order": o, "mode": mode, "weights": weights}
        for o in (2, 3)
        for mode in ("multistep", "singlestep")
        for weights in ("published", "exact")
    ],
    "deis": [{"deis_mode": mode, "order": o} for mode in ("tab", "rhoab", "logrho") for o in (2, 3, 4)],
    "unipc": [{"order": o, "variant": v, "corrector": c} for o in (1, 2) for v in ("bh1", "bh2") for c in (True, False)]
    + [{"order": 3, "corrector": False}],
    "exp_rk": [{"tableau": name, "c2": c2} for name, c2 in (("res_2s", 0.5), ("res_2s", 1.0), ("res_3s", 0.4))]
    + [{"tableau": name} for name in ("etd3rk", "krogstad", "res_5s")],
    "edm_heun": [{"s_churn": 0.0}],
    "sa_solver": [
        {"tau": 0.0, "predictor_order": p, "corrector_order": c}
        for p, c in ((1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 3), (3, 2))
    ],
    "pc_langevin": [{"snr": 0.0}],
    "interpolant_sde": [{"strength": 0.0}],
    "dlg": [{"chain_steps": 0}],
    "restart": [{"repeats": 0, "base": base} for base in ("heun", "euler")],
    "ctm_gamma": [{"gamma": 0.0}],
    "tcd": [{"gamma": 0.0}],
    "pcm": [{}],
    "scm": [],  # it has no setting without noise
    "ping_pong": [{"fresh": 0.0}],
}
EULER = {  # one row per solver: the knobs that make it Euler, None where no knobs do
    "auto": None,
    "ghvb": {"order": 1.0},
    "heavy_ball": {"order": 1.0},
    "nesterov": {"order": 1.0},
    "lambda_ddim": {},
    "bdia": {"gamma": 0.0},
    "edict": None,
    "paradigms": {"window": 1},
    "time_shift": {"window": 0.0},
    "gaussian_teleport": {"skip": 0.0},
    "gradient_estimation": {"gamma": 1.0},
    "per_step": {"order": 1},
    "dpm_solver": {"order": 1},
    "dpm_solver_pp": {"order": 1},
    "deis": {"order": 1},
    "unipc": {"order": 1, "corrector": False},
    "exp_rk": None,
    "edm_heun": None,
    "sa_solver": {"tau": 0.0, "predictor_order": 1, "corrector_order": 0},
    "pc_langevin": {"corrector_steps": 0},
    "interpolant_sde": {"strength": 0.0},
    "dlg": None,
    "restart": {"repeats": 0, "base": "euler"},
    "ctm_gamma": {"gamma": 0.0},
    "tcd": {"gamma": 0.0},
    "pcm": {},
    "scm": None,
    "ping_pong": {"fresh": 0.0},
}
PLAIN = {  # knobs of those that otherwise need more than one step, move x before a call, or spare or gather calls
    "restart": {"repeats": 0},
    "dlg": {"chain_steps": 0},
    "edm_heun": {"s_churn": 0.0},
    "paradigms": {"window": 1},
    "gaussian_teleport": {"skip": 0.0},
}
RANGE = {"eps": (10.0, 0.5), "flow": (0.98, 0.2)}  # where orders are measured
SHAPES = [(2, 3, 2), (2, 3, 4, 2), (1, 24)]  # image, video, packed

every_solver = pytest.mark.parametrize("key", SOLVERS)
every_path = pytest.mark.parametrize("name", PATHS)


def run(key, name, model, x, sigmas, seed=0, **kwargs):
    """Item i of a batch draws its noise, if the solver uses any, from seed + i."""
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
    noise_sampler = noise_of(x, item_seeds(seed, len(x)))
    return SOLVERS[key](model, x, sigmas, path=PATHS[name], noise_sampler=noise_sampler, **kwargs)


@cache
def solved(problem, name):
    """A model, a start, and where the exact ODE takes it."""
    model = problem(PATHS[name])
    top, bottom = map(number, RANGE[name])
    x = model.start(top)
    return model, x, model.exact(x, top, bottom)


def euler(model, x, sigmas):
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * to_d(x, sigma, model(x, sigma.expand(len(x))))
    return x


def test_every_solver_has_a_row():
    assert SETTINGS.keys() == EULER.keys() == SOLVERS.keys()


@pytest.mark.parametrize("key", ["ghvb", "heavy_ball", "nesterov"])
def test_an_order_a_rounding_error_above_a_whole_one_is_that_one(key):
    model = gaussian(PATHS["flow"])
    x, sigmas = model.start(number(0.98)), torch.linspace(0.98, 0, 7)
    order = nextafter(3.0, 4.0)
    assert_close(run(key, "flow", model, x, sigmas, order=order), run(key, "flow", model, x, sigmas, order=3.0), 1e-12)
    assert SOLVERS[key].declared_order(order=order) == SOLVERS[key].declared_order(order=3.0)


@pytest.mark.parametrize("key, knobs", [(key, knobs) for key, rows in SETTINGS.items() for knobs in rows], ids=str)
@pytest.mark.parametrize("problem", [gaussian, mixture])
@every_path
def test_order_of_convergence_is_as_declared(name, problem, key, knobs):
    model, x, exact = solved(problem, name)
    counts = [160, 320, 640]
    errors = [(run(key, name, model, x, graded(n, *RANGE[name]), **knobs) - exact).abs().max() for n in counts]
    assert convergence(errors, counts) == pytest.approx(SOLVERS[key].declared_order(**knobs), abs=0.2)


@every_path
def test_published_weights_stay_at_order_2_on_uneven_steps_and_variable_ones_do_not(name):
    model, x, exact = solved(gaussian, name)
    counts = [80, 160, 320]

    def slope(**knobs):
        grids = [graded(n, *RANGE[name], power=2) for n in counts]
        return convergence([(run("ghvb", name, model, x, grid, **knobs) - exact).abs().max() for grid in grids], counts)

    assert slope(order=4.0) < 2.5 and SOLVERS["ghvb"].declared_order(order=4.0) == 2
    assert slope(order=4.0, variable_step=True) > 3.7


def test_lambda_ddim_converges_from_sigma_1_of_flow():
    model = gaussian(FLOW)
    x = model.start(number(1.0))
    counts = [40, 80, 160, 320]
    for lambda_c in (-0.3, 0.0, 0.3):
        grids = [torch.linspace(1, 0, n + 1, dtype=torch.float64) for n in counts]
        exact = model.exact(x, number(1.0), number(0.0))
        errors = [(run("lambda_ddim", "flow", model, x, grid, lambda_c=lambda_c) - exact).abs().max() for grid in grids]
        assert errors[0] < 0.25 and convergence(errors, counts) > 0.85


@pytest.mark.parametrize("key", [key for key, knobs in EULER.items() if knobs is not None])
@every_path
def test_euler_limit(name, key):
    model = gaussian(PATHS[name])
    sigmas = torch.tensor(SIGMAS[name], dtype=torch.float64)
    x = model.start(sigmas[0])
    assert_close(run(key, name, model, x, sigmas, **EULER[key]), euler(model, x, sigmas), 1e-14)


@every_solver
@every_path
def test_one_step_to_zero_is_the_denoised_latent(name, key):
    model = gaussian(PATHS[name])
    sigmas = number([SIGMAS[name][0], 0.0])
    x = model.start(sigmas[0])
    result = run(key, name, model, x, sigmas, **PLAIN.get(key, {}))
    assert torch.equal(result, model(x, sigmas[:1].expand(len(x))))


@every_solver
@every_path
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeats_itself_leaves_inputs_alone_and_keeps_items_apart(shape, name, key):
    model = gaussian(PATHS[name], shape)
    sigmas = number(SIGMAS[name])
    x = model.start(sigmas[0], batch=3)
    x_before, sigmas_before = x.clone(), sigmas.clone()
    result = run(key, name, model, x, sigmas)
    assert result.shape == x.shape and result.isfinite().all()
    assert torch.equal(x, x_before) and torch.equal(sigmas, sigmas_before)
    assert torch.equal(run(key, name, model, x, sigmas), result)
    for i in range(len(x)):
        assert_close(run(key, name, model, x[i : i + 1], sigmas, seed=i), result[i : i + 1], 1e-14)


@every_solver
@every_path
def test_calls_and_callbacks(name, key):
    model, calls, seen = gaussian(PATHS[name]), [], []
    sigmas = number(SIGMAS[name])
    x = model.start(sigmas[0])

    def counted(x, sigma, mark):
        calls.append((sigma, mark))
        return model(x, sigma)

    knobs = PLAIN.get(key, {})
    run(key, name, counted, x, sigmas, extra_args={"mark": "passed on"}, callback=seen.append, disable=True, **knobs)
    assert len(calls) == SOLVERS[key].count(len(sigmas) - 1, **knobs)
    assert all(sigma.shape == (len(x),) and mark == "passed on" for sigma, mark in calls)
    assert [entry["i"] for entry in seen] == list(range(len(sigmas) - 1))
    assert all(entry.keys() == {"x", "i", "sigma", "sigma_hat", "denoised"} for entry in seen)
    assert torch.equal(torch.stack([entry["sigma"] for entry in seen]), sigmas[:-1])
    assert torch.equal(seen[0]["x"], x) and torch.equal(seen[0]["denoised"], model(x, sigmas[:1].expand(len(x))))


@every_solver
@pytest.mark.parametrize("dtype, state", [(torch.float16, torch.float32), (torch.float32, torch.float32)])
def test_state_is_float32_at_least(dtype, state, key):
    model = gaussian(FLOW, dtype=torch.float32)
    result = SOLVERS[key](model, model.start(torch.tensor(1.0)).to(dtype), torch.linspace(1, 0, 6), path=FLOW)
    assert result.dtype == state


@every_solver
def test_gradients_reach_the_start(key):
    model = gaussian(EPS)
    x = model.start(number(5.0)).requires_grad_()
    run(key, "eps", model, x, [5.0, 2.0, 1.0, 0.5]).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().min() > 0


def test_problems_agree_with_each_other():
    """The mixture's Runge-Kutta reference, with one clump only, against the Gaussian's closed form."""
    for path, top, bottom in ((EPS, 10.0, 0.1), (FLOW, 0.98, 0.05)):
        several, one = mixture(path), gaussian(path, (2, 1, 1))
        several = type(several)(path, one.mean, 0.4)
        one = type(one)(path, one.mean, torch.full_like(one.std, 0.4))
        x = one.start(number(top))
        assert_close(several(x, number(top)), one(x, number(top)), 1e-14)
        assert_close(several.exact(x, number(top), number(bottom)), one.exact(x, number(top), number(bottom)), 1e-12)


@every_solver
def test_facts_are_stated(key):
    solver = SOLVERS[key]
    assert solver.title and solver.good_for and "arXiv:" in solver.source and solver.evaluations >= 1
    assert callable(solver.sample) and solver.sample.__name__ == f"sample_{key}"
