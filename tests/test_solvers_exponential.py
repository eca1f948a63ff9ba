"""The exponential integrators: their functions and tables, others' code for the same methods, and starts from sigma 1."""

from functools import cache
from math import exp, factorial

import pytest
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.phi import exact_weights, phi
from comfyui_distillery.samplers.solvers.tableaus import BY_NAME, Tableau, dot
from comfyui_distillery.samplers.solvers.unipc import predictor

from .problems import EPS, FLOW, PATHS, SIGMAS, assert_close, convergence, gaussian, graded, mixture, number

every_path = pytest.mark.parametrize("name", PATHS)
RANGE = {"eps": (10.0, 0.5), "flow": (0.98, 0.2)}  # where orders are measured
FALLING = {"eps": [14.6, 9.0, 5.0, 2.5, 1.2, 0.5, 0.2], "flow": [0.97, 0.9, 0.8, 0.65, 0.45, 0.25, 0.1]}
LAMBDA_METHODS = [  # those whose result depends on lam = log(alpha / sigma) alone
    ("dpm_solver", {"order": 2}), ("dpm_solver", {"order": 3}), ("dpm_solver_pp", {"order": 2}),
    ("dpm_solver_pp", {"order": 3, "weights": "exact"}), ("dpm_solver_pp", {"order": 3, "mode": "singlestep"}),
    ("unipc", {"order": 3}), ("unipc", {"variant": "bh1"}), ("exp_rk", {}), ("exp_rk", {"tableau": "res_5s"}),
    ("deis", {"deis_mode": "rhoab", "order": 3}), ("deis", {"deis_mode": "logrho", "order": 3}),
]  # fmt: skip


def run(key, path, model, x, sigmas, **knobs):
    return SOLVERS[key](model, x, torch.as_tensor(sigmas, dtype=torch.float64), path=path, **knobs)


@cache
def solved(problem, name, top, bottom):
    """A model, a start at sigma top, and where the exact ODE takes it."""
    model, start = problem(PATHS[name]), number(top)
    x = model.start(start)
    return model, x, model.end(x, start) if bottom == 0 and problem is mixture else model.exact(x, start, number(bottom))


# Functions and tables


def integral(function, z):
    """Of exp((1 - theta) z) function(theta) over [0, 1], by Simpson's rule, good to 1e-13 here."""
    theta = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    weight = torch.full_like(theta, 2 / 3)
    weight[1::2], weight[0], weight[-1] = 4 / 3, 1 / 3, 1 / 3
    return float((weight * ((1 - theta) * z).exp() * function(theta)).mean() * len(theta) / (len(theta) - 1))


@pytest.mark.parametrize("z", [-8.0, -1.0, -0.999, -1e-3, 0.0, 1e-9, 0.7, 3.0])
def test_phi_is_its_integral(z):
    assert phi(0, z) == pytest.approx(exp(z), rel=1e-14)
    for k in range(1, 6):
        expected = integral(lambda theta, k=k: theta ** (k - 1) / factorial(k - 1), z)
        assert phi(k, z) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("z", [-2.0, -1e-6, 0.0, 1.5])
def test_exact_weights_are_exact_for_polynomials(z):
    nodes = [0.0, -0.4, -1.7, 1.0]
    weights = exact_weights(nodes, z)
    for k in range(4):
        value = sum(weight * node**k for weight, node in zip(weights, nodes))
        assert value == pytest.approx(integral(lambda theta, k=k: theta**k, z), rel=1e-10)


STIFF_ORDER = {"res_2s": 2, "res_3s": 3, "etd3rk": 2, "krogstad": 3, "res_5s": 4}


def stiff_residuals(tableau, order, z, z_of_b):
    """How far each condition of that order is from being met, with the stages' weights at z and the result's at z_of_b."""
    c, last = tableau.nodes, len(tableau.nodes) - 1
    a, b = [[], *(tableau.weights(row, z) for row in range(last))], tableau.weights(last, z_of_b)

    def psi(k):
        moments = (sum(w * c[j] ** (k - 1) for j, w in enumerate(row)) / factorial(k - 1) for row in a)
        return [phi(k, node * z) * node**k - moment for node, moment in zip(c, moments)]

    terms = {3: [psi(2)], 4: [psi(3), [dot(row, psi(2)) for row in a], [node * p for node, p in zip(c, psi(2))]]}
    quadrature = phi(order, z_of_b) - dot(b, [node ** (order - 1) for node in c]) / factorial(order - 1)
    return [abs(quadrature), *(abs(dot(b, term)) for term in terms.get(order, []))]


@pytest.mark.parametrize("name", BY_NAME)
def test_tableaus_meet_the_stiff_order_conditions(name):
    """Hochbruck and Ostermann 2005, table 1: those of the order itself with b at z = 0, all lower ones at every z."""
    tableau, declared = BY_NAME[name](0.4), STIFF_ORDER[name]
    for z in (-3.0, -0.7, -0.05, 2.0):
        for order in range(1, declared + 1):
            assert max(stiff_residuals(tableau, order, z, z if order < declared else 0.0)) < 1e-10, f"order {order} at {z}"
    assert declared == 4 or max(stiff_residuals(tableau, declared + 1, -0.7, 0.0)) > 1e-3, "better than declared"


def test_a_wrong_tableau_is_refused_where_it_is_made():
    with pytest.raises(AssertionError, match="not of order 2"):
        Tableau((0.0, 1 / 3, 2 / 3), ({}, {1: ((4 / 3, 2, 2 / 3),)}, {2: ((2, 2, 1),)}), 3)


# Limits


@pytest.mark.parametrize("key, knobs", LAMBDA_METHODS, ids=str)
def test_a_run_on_flow_is_the_image_of_the_run_on_ve(key, knobs):
    """x / alpha and sigma / alpha turn flow into VE, and the data and lam are the same on both."""
    sigmas = number(FALLING["flow"])
    flow, ve = mixture(FLOW), mixture(EPS)
    x = flow.start(sigmas[0])
    on_flow = run(key, FLOW, flow, x, sigmas, **knobs)
    image, levels = x / (1 - sigmas[0]), sigmas / (1 - sigmas)
    assert_close(on_flow, (1 - sigmas[-1]) * run(key, EPS, ve, image, levels, **knobs), 1e-12)


@pytest.mark.parametrize("key, knobs", [row for row in LAMBDA_METHODS if "flow_time" in str(SOLVERS[row[0]].knobs)], ids=str)
def test_log_sigma_time_is_the_ve_method_on_flow_sigmas(key, knobs):
    """As core runs dpmpp_2m on flow; on VE models the choice changes nothing."""
    model, sigmas = mixture(FLOW), SIGMAS["flow"]
    x = model.start(number(sigmas[0]))
    timed = run(key, FLOW, model, x, sigmas, flow_time="log_sigma", **knobs)
    assert_close(timed, run(key, EPS, model, x, sigmas, **knobs), 1e-13)
    assert not torch.allclose(timed, run(key, FLOW, model, x, sigmas, flow_time="lambda", **knobs), atol=1e-3)
    model, sigmas = mixture(EPS), SIGMAS["eps"]
    x = model.start(number(sigmas[0]))
    results = [run(key, EPS, model, x, sigmas, flow_time=time, **knobs) for time in ("lambda", "log_sigma")]
    assert torch.equal(*results)


def test_deis_in_a_time_even_in_log_sigma_is_logrho():
    path = Path("eps", log_sigmas=torch.linspace(-4, 4, 300, dtype=torch.float64))
    model, sigmas = mixture(EPS), FALLING["eps"]
    x = model.start(number(sigmas[0]))
    for order in (2, 3, 4):
        tab, logrho = (run("deis", path, model, x, sigmas, deis_mode=mode, order=order) for mode in ("tab", "logrho"))
        assert_close(tab, logrho, 1e-11)


def test_deis_rhoab_on_ve_is_adams_bashforth_in_sigma():
    model, sigmas = mixture(EPS), FALLING["eps"]
    x = model.start(number(sigmas[0]))
    for order in (2, 3, 4):
        adams = run("ghvb", EPS, model, x, sigmas, order=float(order), variable_step=True)
        assert_close(run("deis", EPS, model, x, sigmas, deis_mode="rhoab", order=order), adams, 1e-12)


@every_path
def test_singlestep_dpm_solver_pp_3_is_a_tableau(name):
    model, sigmas = mixture(PATHS[name]), SIGMAS[name]
    x = model.start(number(sigmas[0]))
    single = run("dpm_solver_pp", PATHS[name], model, x, sigmas, order=3, mode="singlestep")
    assert_close(run("exp_rk", PATHS[name], model, x, sigmas, tableau="res_3s", c2=1 / 3), single, 1e-13)


def test_bh1_and_bh2_are_one_above_order_2():
    for nodes in ([0.0], [0.0, -0.6, -1.4], [0.0, -0.6, -1.4, -2.0]):
        _, bh1 = predictor("bh1", 0.5, 0.9, 0.8, nodes)
        assert bh1 == predictor("bh2", 0.5, 0.9, 0.8, nodes)[1]
    assert predictor("bh1", 0.5, 0.9, 0.8, [0.0, -0.6]) != predictor("bh2", 0.5, 0.9, 0.8, [0.0, -0.6])


@every_path
def test_lower_order_final_counts_for_runs_to_sigma_0_alone(name):
    model, sigmas = mixture(PATHS[name]), SIGMAS[name]
    x = model.start(number(sigmas[0]))
    for key in ("unipc", "dpm_solver_pp"):
        for levels, same in ((sigmas, False), (sigmas[:-1], True)):
            ends = [run(key, PATHS[name], model, x, levels, order=3, lower_order_final=flag) for flag in (True, False)]
            assert torch.allclose(*ends, rtol=0, atol=1e-12) == same


# Order


@pytest.mark.parametrize("order, corrector", [(3, True), (4, False), (4, True)])
@pytest.mark.parametrize("problem", [gaussian, mixture])
@every_path
def test_high_orders_of_unipc(name, problem, order, corrector):
    """On finer steps than the other solvers, which these orders need to show."""
    ends = RANGE[name]
    model, x, exact = solved(problem, name, *ends)
    counts = [300, 600, 1200]
    results = [run("unipc", PATHS[name], model, x, graded(n, *ends), order=order, corrector=corrector) for n in counts]
    slope = convergence([(result - exact).abs().max() for result in results], counts)
    assert slope == pytest.approx(order + corrector, abs=0.25)


@every_path
def test_published_3m_is_of_second_order_and_exact_weights_of_third(name):
    ends, counts = RANGE[name], [160, 320, 640]
    model, x, exact = solved(mixture, name, *ends)
    slopes = {}
    for weights in ("published", "exact"):
        results = [run("dpm_solver_pp", PATHS[name], model, x, graded(n, *ends), order=3, weights=weights) for n in counts]
        slopes[weights] = convergence([(result - exact).abs().max() for result in results], counts)
    assert slopes["published"] < 2.2 and slopes["exact"] > 2.8


FROM_ONE = [
    ("dpm_solver", {"order": 2}), ("dpm_solver", {"order": 3}), ("dpm_solver_pp", {}), ("dpm_solver_pp", {"order": 3}),
    ("dpm_solver_pp", {"order": 2, "mode": "singlestep"}), ("unipc", {}), ("unipc", {"variant": "bh1", "order": 4}),
    ("unipc", {"corrector": False}), ("unipc", {"flow_time": "log_sigma"}), ("exp_rk", {}), ("exp_rk", {"tableau": "res_5s"}),
    ("deis", {}), ("deis", {"order": 4}), ("deis", {"deis_mode": "rhoab"}), ("deis", {"deis_mode": "logrho", "order": 3}),
]  # fmt: skip


@pytest.mark.parametrize("key, knobs", FROM_ONE, ids=str)
@pytest.mark.parametrize("problem", [gaussian, mixture])
def test_from_sigma_1_of_flow(problem, key, knobs):
    """Steps even in sigma, as most schedulers': their first and last are long in lam at any number, so the order is 2."""
    counts = [40, 80, 160]
    model, x, exact = solved(problem, "flow", 1.0, 0.0)
    results = [run(key, FLOW, model, x, torch.linspace(1, 0, n + 1), **knobs) for n in counts]
    errors = [(result - exact).abs().max() for result in results]
    assert errors[0] < 0.05 and convergence(errors, counts) > 1.5


@pytest.mark.parametrize("key, knobs", LAMBDA_METHODS, ids=str)
def test_no_sigma_near_1_is_unstable(key, knobs):
    """As image to image, or core's offset, start it: a thousandfold fall of the VE sigma in one step."""
    for start in (1.0, 0.99999, 0.999):
        model, x, exact = solved(mixture, "flow", start, 0.0)
        result = run(key, FLOW, model, x, [start, 0.9, 0.75, 0.5, 0.25, 0.0], **knobs)
        assert (result - exact).abs().max() < 0.3


@pytest.mark.parametrize("key, knobs", [*LAMBDA_METHODS, ("deis", {})], ids=str)
def test_float32_is_enough_near_sigma_1(key, knobs):
    model, sigmas = mixture(FLOW), [0.99999, 0.9, 0.75, 0.5, 0.25, 0.0]
    x = model.start(number(sigmas[0])).float()
    single = SOLVERS[key](
        lambda x, sigma: model(x.double(), sigma.double()).float(), x, torch.tensor(sigmas), path=FLOW, **knobs
    )
    assert single.dtype == torch.float32
    double = run(key, FLOW, model, x.double(), torch.tensor(sigmas), **knobs)
    assert_close(single.double(), double, 1e-3)


# Others' code


def diffusers_run(scheduler, model, x, sigmas, flow):
    """A diffusers scheduler on these sigmas; eps models run in its VP coordinates, x / sqrt(1 + sigma^2)."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    norm = torch.ones_like(sigmas) if flow else (1 + sigmas**2).sqrt()
    x = x / norm[0]
    for i, t in enumerate(scheduler.timesteps):
        ve = x * norm[i]
        output = (ve - model(ve, sigmas[i])) / sigmas[i]
        x = scheduler.step(output, t, x, return_dict=False)[0].double()
    return x * norm[-1]


THEIRS = [
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "midpoint"}, "dpm_solver_pp", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun"}, "dpm_solver_pp", {"weights": "exact"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpm_solver_pp", {"order": 3}),
    *(
        ("UniPCMultistepScheduler", {"solver_order": order, "solver_type": variant}, "unipc", {"order": order, "variant": variant})
        for order in (1, 2, 3, 4) for variant in ("bh1", "bh2")
    ),
    *(
        ("DEISMultistepScheduler", {"solver_order": order}, "deis", {"order": order, "deis_mode": "logrho"})
        for order in (1, 2, 3)
    ),
]  # fmt: skip


@pytest.mark.parametrize("scheduler, config, key, knobs", THEIRS, ids=str)
@every_path
def test_diffusers_agrees(name, scheduler, config, key, knobs):
    diffusers = pytest.importorskip("diffusers")
    flow = name == "flow"
    kind = {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if flow else {"prediction_type": "epsilon"}
    model = mixture(PATHS[name])
    for sigmas in ([*FALLING[name], 0.0], FALLING[name]):
        if sigmas[-1] == 0 and (key == "deis" or knobs.get("variant") == "bh1"):  # theirs is not finite there
            continue
        ending = {} if sigmas[-1] == 0 else {"lower_order_final": False}
        if key == "dpm_solver_pp" and ending:
            ending["final_sigmas_type"] = "sigma_min"
        theirs = getattr(diffusers, scheduler)(**config, **kind, **ending)
        x = model.start(number(sigmas[0]))
        expected = diffusers_run(theirs, model, x, number(sigmas), flow)
        assert_close(run(key, PATHS[name], model, x, sigmas, **knobs), expected, 2e-5)
