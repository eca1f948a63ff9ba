"""What every solver refuses before it calls the model, and what a caller may hand it."""

import pytest
import torch
from comfyui_distillery.samplers.core import check_sigmas
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.contrast import CONTRASTS
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from comfyui_distillery.samplers.noise import gaussian as noise_of
from comfyui_distillery.samplers.noise import item_seeds
from comfyui_distillery.samplers.schedules import SCHEDULES
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.per_step import Rule

from .problems import EPS, FLOW, assert_close, gaussian, number, randn
from .test_solvers import euler, every_solver, run

BAD_SIGMAS = {
    "one list of noise levels": [[1.0, 0.0]],
    "1 value": [1.0],
    "sigmas.1. is nan": [1.0, float("nan"), 0.0],
    "sigmas.0. is inf": [float("inf"), 1.0, 0.0],
    "sigmas.2. is -0.5": [1.0, 0.5, -0.5],
    "is 0.5 and sigmas.2. is 0.5": [1.0, 0.5, 0.5, 0.0],
    "is 0.2 and sigmas.1. is 0.5": [0.2, 0.5, 0.0],
    "0 may only come last": [1.0, 0.0, 0.0],
}


@pytest.mark.parametrize("message, sigmas", BAD_SIGMAS.items(), ids=list(BAD_SIGMAS))
@every_solver
def test_bad_sigmas(key, message, sigmas):
    with pytest.raises(ValueError, match=message):
        SOLVERS[key](gaussian(EPS), randn(1, 2, 3, 2), torch.tensor(sigmas), path=EPS)


LOOKS_BACK = {
    "ghvb": {"order": 4.5}, "heavy_ball": {"order": 5.0}, "nesterov": {"order": 4.1}, "deis": {"order": 4}, "unipc": {"order": 4},
    "dpm_solver_pp": {"order": 3}, "per_step": {"order": 4}, "sa_solver": {"predictor_order": 4},
}  # fmt: skip


@pytest.mark.parametrize("key, knobs", LOOKS_BACK.items(), ids=str)
def test_an_order_that_the_steps_do_not_allow_is_refused_before_any_call(key, knobs):
    def model(x, sigma):
        raise AssertionError("called")

    [(name, value)] = knobs.items()
    with pytest.raises(ValueError, match=rf"{name} is {value:g}, which makes use of \d steps, and sigmas has 2: lower {name}"):
        SOLVERS[key](model, randn(1, 2, 3, 2), torch.tensor([1.0, 0.5, 0.0]), path=EPS, **knobs)
    assert run(key, "eps", gaussian(EPS), randn(1, 2, 3, 2), [1.0, 0.5, 0.0]).isfinite().all()  # defaults only warm up


def test_what_is_no_knob_reaches_the_solver():
    model = gaussian(EPS)
    x, sigmas = model.start(number(5.0)), number([5.0, 2.0, 1.0, 0.5])
    euler_rules = [Rule(order=1)] * 3
    assert_close(run("per_step", "eps", model, x, sigmas, recipe=euler_rules), euler(model, x, sigmas), 1e-14)


@pytest.mark.parametrize("key", [key for key, solver in SOLVERS.items() if solver.needs_noise])
def test_taken_as_it_is_a_solver_draws_from_the_seed(key):
    model = gaussian(EPS)
    x, sigmas = model.start(number(5.0)), number([5.0, 2.0, 1.0, 0.5])
    knobs = {"path": EPS} | {"mu": 0.5} if key == "gradient_estimation" else {"path": EPS}
    alone = SOLVERS[key].sample(lambda x, sigma, seed: model(x, sigma), x, sigmas, {"seed": 7}, **knobs)
    given = SOLVERS[key].sample(model, x, sigmas, noise_sampler=noise_of(x, item_seeds(7, len(x))), **knobs)
    assert torch.equal(alone, given)


def test_good_sigmas_pass():
    for sigmas in ([1.0, 0.0], [14.6, 0.03], [80.0, 1.0, 1e-3, 0.0]):
        check_sigmas(torch.tensor(sigmas))


@every_solver
def test_bad_settings(key):
    solver = SOLVERS[key]
    x, sigmas = randn(1, 2, 3, 2), torch.tensor([1.0, 0.5, 0.0])
    for knob in solver.knobs:
        outside = [] if knob.min is None else [knob.min - 1, knob.max + 1, float("nan"), "2"]
        wrong = {bool: ["yes", None], str: ["no option", 1]}.get(type(knob.default), outside)
        for value in wrong:
            with pytest.raises(ValueError, match=rf"{knob.name} is .* it must be "):
                solver(gaussian(EPS), x, sigmas, path=EPS, **{knob.name: value})
    with pytest.raises(ValueError, match="unknown setting no_such_knob=1"):
        solver(gaussian(EPS), x, sigmas, path=EPS, no_such_knob=1)
    if solver.needs_path:
        with pytest.raises(ValueError, match="needs path="):
            solver(gaussian(EPS), x, sigmas)
        with pytest.raises(ValueError, match="sigmas.0. is 14"):
            solver(gaussian(FLOW), x, torch.tensor([14.0, 0.0]), path=FLOW)


def test_in_one_family_knobs_of_one_name_have_the_same_options_and_default():
    """The browser carries a value over to another method's widget of the same name. Any order is good for any method."""
    known = {}
    families = [(solver.family, solver) for solver in SOLVERS.values()]
    for registry in (SCHEDULES, SKIPS, RULES, CONTRASTS):
        families += [(id(registry), method) for method in registry.values()]
    for family, method in families:
        for knob in method.knobs:
            meaning = knob.options, None if knob.name == "order" else knob.default
            assert known.setdefault((family, knob.name), meaning) == meaning, (method.title, knob.name)
