"""Rules per step: each fixed rule is a known solver, and mixed recipes share one history."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from comfyui_distillery.samplers.core import to_d
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.per_step import Rule, sample_per_step

from .problems import EPS, FLOW, PATHS, SIGMAS, assert_close, convergence, gaussian, graded, mixture, number
from .test_solvers import RANGE, euler, solved

every_path = pytest.mark.parametrize("name", PATHS)
per_step = SOLVERS["per_step"]


@every_path
@pytest.mark.parametrize("prediction", ["data", "noise", "slope"])
def test_order_1_is_euler_whatever_is_predicted(name, prediction):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = model.start(sigmas[0])
    ours = per_step(model, x, sigmas, path=PATHS[name], prediction=prediction, order=1)
    assert_close(ours, euler(model, x, sigmas), 1e-13)


@every_path
@pytest.mark.parametrize("order", [2, 3, 4])
def test_slope_is_adams_bashforth_with_true_lengths(name, order):
    """That is ghvb at a whole order, ipndm where steps are even, and DEIS (rho AB) on VE paths."""
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = model.start(sigmas[0])
    ours = per_step(model, x, sigmas, path=PATHS[name], prediction="slope", order=order)
    assert_close(ours, SOLVERS["ghvb"](model, x, sigmas, order=float(order), variable_step=True), 1e-12)


def diffusers_run(scheduler, model, x, steps):
    """(sigmas, the end of diffusers' run in VE coordinates) from x on the eps path."""
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    theirs, *_ = EPS.to_vp(x, sigmas[0])
    for t, sigma in zip(scheduler.timesteps, sigmas):
        ve = theirs * (1 + sigma**2).sqrt()
        theirs = scheduler.step(to_d(ve, sigma, model(ve, sigma)), t, theirs).prev_sample
    return sigmas, theirs * (1 + sigmas[-1] ** 2).sqrt()


BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "lower_order_final": False,
         "final_sigmas_type": "sigma_min"}  # fmt: skip
DPM_SOLVERS = [
    ("dpmsolver++", "midpoint", "data", 2, "dpm_solver"), ("dpmsolver++", "midpoint", "data", 3, "dpm_solver"),
    ("dpmsolver", "midpoint", "noise", 2, "dpm_solver"), ("dpmsolver", "midpoint", "noise", 3, "dpm_solver"),
    ("dpmsolver++", "heun", "data", 2, "exact"), ("dpmsolver", "heun", "noise", 2, "exact"),
]  # fmt: skip


@pytest.mark.parametrize("algorithm, kind, prediction, order, weights", DPM_SOLVERS)
def test_data_and_noise_are_diffusers_dpm_solvers(algorithm, kind, prediction, order, weights):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type=algorithm, solver_type=kind, solver_order=order, **BETAS)
    model = mixture(EPS)
    x = model.start(number(14.6))
    sigmas, theirs = diffusers_run(scheduler, model, x, 9)
    ours = per_step(model, x, sigmas, path=EPS, prediction=prediction, order=order, weights=weights)
    assert_close(ours, theirs, 2e-5)  # their coefficients are float32


@pytest.mark.parametrize("order", [2, 3])
def test_data_with_corrector_is_diffusers_unipc(order):
    """Which corrects with the polynomial's own weights, but predicts at order 2 as DPM-Solver++ does."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(solver_type="bh2", solver_order=order, disable_corrector=[0], **BETAS)
    model = mixture(EPS)
    x = model.start(number(14.6))
    sigmas, theirs = diffusers_run(scheduler, model, x, 9)
    second = Rule(order=2, corrector=True, weights="dpm_solver")
    recipe = [Rule(order=1), second] + [Rule(order=3, corrector=True) if order == 3 else second] * 7
    assert_close(sample_per_step(model, x, sigmas, path=EPS, recipe=recipe), theirs, 2e-5)


def integrated(path, rule, states, i, ahead):
    """Step i by definition: the polynomial through the predictions, integrated by Gauss-Legendre in lambda, or in sigma."""
    x, sigma, sigma_next = states[i]["x"], states[i]["sigma"], states[i]["sigma_next"]
    values, places = [], []
    for state in states[max(i - rule.order + 1, 0) : i + 1 + ahead]:
        eps = to_d(state["model_x"], state["sigma"], path.alpha(state["sigma"]) * state["denoised"])
        d = to_d(state["model_x"], state["sigma"], state["denoised"])
        place = state["sigma"] if rule.prediction == "slope" else path.lam(state["sigma"])
        if place.isfinite():
            places.append(place.item())
            values.append({"data": state["denoised"], "noise": eps, "slope": d}[rule.prediction])
    here, there = (s if rule.prediction == "slope" else path.lam(s) for s in (sigma, sigma_next))
    if not (here.isfinite() and there.isfinite()):
        return x + (sigma_next - sigma) * to_d(x, sigma, states[i]["denoised"])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    total = torch.zeros_like(x)
    for node, weight in zip(nodes, weights):
        at = here + (there - here) * (node + 1) / 2
        lagrange = [np.prod([(at.item() - p) / (q - p) for p in places if p != q]) for q in places]
        value = sum(share * v for share, v in zip(lagrange, values)) * weight * (there - here) / 2
        now = at if rule.prediction == "slope" else path.sigma(at)
        kernel = {"data": path.alpha(now) * sigma_next / now, "noise": -now * path.alpha(sigma_next) / path.alpha(now)}
        total = total + kernel.get(rule.prediction, 1.0) * value
    carried = {"data": sigma_next / sigma, "noise": path.alpha(sigma_next) / path.alpha(sigma), "slope": 1.0}
    return carried[rule.prediction] * x + total


MIXED = [
    [Rule("slope", 2)] * 2 + [Rule("data", 3)] * 2 + [Rule("noise", 2)],
    [Rule("noise", 3), Rule("data", 2, True), Rule("slope", 4), Rule("data", 4, True), Rule("slope", 2, True)],
    [Rule("data", 2, True), Rule("noise", 2, True), Rule("slope", 1, True), Rule("noise", 1), Rule("data", 3, True)],
]


@pytest.mark.parametrize("recipe", MIXED)
@pytest.mark.parametrize("name, top", [("eps", 14.6), ("flow", 0.97), ("flow", 1.0)])
def test_mixed_recipes_are_what_each_rule_means(name, top, recipe):
    """Every step from what the run itself has predicted so far, whichever rule was in force then."""
    path, sigmas = PATHS[name], number([top, *SIGMAS[name][1:5], SIGMAS[name][4] / 2])
    model, asked, seen = mixture(path), [], []

    def looking(x, sigma):
        asked.append(x)
        return model(x, sigma)

    start = model.start(sigmas[0])
    end = sample_per_step(looking, start, sigmas, callback=seen.append, path=path, recipe=recipe)
    states = [state | {"model_x": x, "sigma_next": s} for state, x, s in zip(seen, asked, sigmas[1:])]
    for i, rule in enumerate(recipe):
        predicted = integrated(path, rule, states, i, 0)
        reached = asked[i + 1] if i + 1 < len(asked) else end
        assert_close(reached, predicted, 1e-9)
        if i + 1 < len(states):
            corrected = rule.corrector and path.lam(sigmas[i]).isfinite() | (rule.prediction == "slope")
            assert_close(states[i + 1]["x"], integrated(path, rule, states, i, 1) if corrected else predicted, 1e-9)


@every_path
@pytest.mark.parametrize("knobs", [{"prediction": p, "order": 4} for p in ("data", "noise", "slope")]
                         + [{"prediction": "data", "order": 3, "corrector": True}], ids=str)  # fmt: skip
def test_high_orders_are_reached(name, knobs):
    model, x, exact = solved(gaussian, name)
    counts = [320, 640]
    errors = [(per_step(model, x, graded(n, *RANGE[name]), path=PATHS[name], **knobs) - exact).abs().max() for n in counts]
    assert convergence(errors, counts) == pytest.approx(4, abs=0.25) and per_step.declared_order(**knobs) == 4


def test_a_run_from_sigma_1_of_flow_converges():
    model = mixture(FLOW)
    x = model.start(number(1.0))
    exact = model.end(x, number(1.0))
    for knobs in ({}, {"corrector": True}, {"prediction": "noise", "order": 3}, {"prediction": "slope", "order": 2}):
        ends = [per_step(model, x, torch.linspace(1, 0, n + 1).double(), path=FLOW, **knobs) for n in (20, 80)]
        few, many = ((end - exact).abs().max() for end in ends)
        assert many < 0.3 * few < 0.05


def test_a_recipe_is_plain_json():
    recipe = MIXED[1]
    assert [Rule(**values) for values in json.loads(json.dumps([asdict(rule) for rule in recipe]))] == recipe


def test_the_knobs_are_the_rule_of_the_steps_that_the_recipe_leaves():
    model, sigmas = mixture(EPS), number(SIGMAS["eps"])
    x = model.start(sigmas[0])
    knobs = {"prediction": "noise", "order": 3, "corrector": True}
    whole = sample_per_step(model, x, sigmas, path=EPS, recipe=[Rule(**knobs)] * 5)
    assert torch.equal(whole, sample_per_step(model, x, sigmas, path=EPS, **knobs))
    assert torch.equal(whole, sample_per_step(model, x, sigmas, path=EPS, recipe=[Rule(**knobs)] * 2, **knobs))


@pytest.mark.parametrize(
    "values, message",
    [({"order": 5}, "order is 5: it must be"), ({"prediction": "x"}, "prediction is 'x'"), ({"corrector": 1}, "corrector is 1"),
     ({"prediction": "slope", "weights": "dpm_solver"}, "Choose exact"), ({"order": 4, "weights": "dpm_solver"}, "order 4")],
)  # fmt: skip
def test_rules_that_do_not_exist_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Rule(**values)


def test_a_recipe_longer_than_the_run_is_refused_before_any_call():
    run = partial(sample_per_step, lambda *_: 1 / 0, torch.zeros(1, 1, 1, 1), number([1.0, 0.5, 0.0]), path=EPS)
    with pytest.raises(ValueError, match="rules for 3 steps and sigmas has 2"):
        run(recipe=[Rule()] * 3)
