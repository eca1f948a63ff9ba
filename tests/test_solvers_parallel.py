"""ParaDiGMS: equal to Euler where it says so, items apart, rounds counted."""

import logging
from itertools import pairwise

import pytest
import torch
from comfyui_distillery.samplers.solvers import SOLVERS

from .problems import PATHS, assert_close, gaussian, mixture, number
from .test_solvers import euler

every_path = pytest.mark.parametrize("name", PATHS)
paradigms = SOLVERS["paradigms"]


def grid(name, steps):
    """Down to 0, from sigma 1 on flow."""
    top, power = (10.0, 3) if name == "eps" else (1.0, 1)
    return top * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power


def counting(model):
    """The model, and a list of (noise levels, latents) of its calls."""
    calls = []

    def counted(x, sigma):
        calls.append((sigma.clone(), len(x)))
        return model(x, sigma)

    return counted, calls


@every_path
@pytest.mark.parametrize("window", [2, 5, 16, 40])
def test_tolerance_0_is_euler_in_as_many_rounds(name, window):
    model, sigmas = mixture(PATHS[name]), grid(name, 16)
    x = model.start(sigmas[0])
    counted, calls = counting(model)
    assert_close(paradigms(counted, x, sigmas, window=window, tolerance=0.0), euler(model, x, sigmas), 1e-13)
    assert len(calls) == 16 == paradigms.count(16, window=window, tolerance=0.0)


@every_path
def test_fewer_rounds_and_a_bounded_error(name):
    """Rounds fall and the error grows with the tolerance; a state's error adds up from at most tolerance a step."""
    model, sigmas = mixture(PATHS[name]), grid(name, 32)
    x = model.start(sigmas[0])
    exact, rounds, errors = euler(model, x, sigmas), [], []
    for tolerance in (0.001, 0.01, 0.1):
        counted, calls = counting(model)
        errors.append(float((paradigms(counted, x, sigmas, window=32, tolerance=tolerance) - exact).abs().max()))
        rounds.append(len(calls))
        assert errors[-1] < 5 * tolerance
    assert rounds == sorted(rounds, reverse=True) and rounds[0] < 28 and rounds[-1] < 20
    assert errors == sorted(errors)


@every_path
def test_slopes_that_do_not_depend_on_the_state_take_two_rounds(name):
    """The first round is then already right, and the second sees it."""
    sigmas = grid(name, 20)
    model, calls = counting(lambda x, sigma: x - sigma.view(-1, 1, 1, 1) * sigma.view(-1, 1, 1, 1).cos())
    x = gaussian(PATHS[name]).start(sigmas[0])
    result = paradigms(model, x, sigmas, window=20, tolerance=1e-9)
    assert len(calls) == 2
    assert_close(result, euler(model, x, sigmas), 1e-12)


@every_path
def test_items_slide_windows_of_their_own(name):
    """One item is straight and quick, the other is not: neither changes when the other is there."""
    model, sigmas = mixture(PATHS[name]), grid(name, 24)
    x = model.start(sigmas[0], batch=5)
    together = paradigms(model, x, sigmas, window=6, tolerance=0.05)
    rounds = []
    for i in range(len(x)):
        counted, calls = counting(model)
        assert_close(together[i : i + 1], paradigms(counted, x[i : i + 1], sigmas, window=6, tolerance=0.05), 1e-12)
        rounds.append(len(calls))
    counted, calls = counting(model)
    paradigms(counted, x, sigmas, window=6, tolerance=0.05)
    assert len(calls) == max(rounds) > min(rounds)


def test_the_batch_holds_states_with_the_item_running_fastest():
    model, seen = gaussian(PATHS["flow"]), []
    sigmas = grid("flow", 4)
    x = model.start(sigmas[0], batch=2)

    def looking(x, sigma):
        seen.append((x.clone(), sigma))
        return model(x, sigma)

    paradigms(looking, x, sigmas, window=3, tolerance=0.0)
    batch, levels = seen[0]
    assert torch.equal(batch, x.repeat(3, 1, 1, 1)) and torch.equal(levels, sigmas[:3].repeat_interleave(2))
    assert [len(batch) for batch, _ in seen] == [6, 6, 4, 2]


@pytest.mark.parametrize("max_batch, most", [(1, 2), (4, 4), (5, 4), (0, 16)])
def test_max_batch_bounds_a_call_and_changes_nothing(max_batch, most):
    model, sigmas = mixture(PATHS["eps"]), grid("eps", 12)
    x = model.start(sigmas[0], batch=2)
    counted, calls = counting(model)
    bounded = paradigms(counted, x, sigmas, window=8, tolerance=0.05, max_batch=max_batch)
    assert_close(bounded, paradigms(model, x, sigmas, window=8, tolerance=0.05), 1e-13)
    assert max(latents for _, latents in calls) == most


@every_path
def test_steps_are_announced_once_and_in_order(name, caplog):
    model, sigmas, rounds, seen = mixture(PATHS[name]), grid(name, 20), [], []
    x = model.start(sigmas[0], batch=3)

    def counted(x, sigma):
        rounds.append(len(seen))
        return model(x, sigma)

    with caplog.at_level(logging.INFO):
        paradigms(counted, x, sigmas, callback=seen.append, window=8, tolerance=0.1)
    assert [state["i"] for state in seen] == list(range(20))
    assert all(state["x"].shape == state["denoised"].shape == x.shape for state in seen)
    assert all(a < b for a, b in pairwise(rounds)), "a round without a callback could not be interrupted"
    assert f"20 steps in {len(rounds)} rounds" in caplog.text


def test_no_level_is_0_and_none_is_beyond_the_schedule():
    model, sigmas = mixture(PATHS["eps"]), grid("eps", 9)
    counted, calls = counting(model)
    paradigms(counted, model.start(sigmas[0], batch=4), sigmas, window=4, tolerance=0.3)
    assert all(torch.isin(levels, sigmas[:-1]).all() for levels, _ in calls)


def test_most_calls_is_an_upper_bound_that_is_reached():
    assert paradigms.count(6, window=4, max_batch=2) == sum([2, 2, 2, 2, 1, 1])
    model, sigmas = mixture(PATHS["eps"]), number([10.0, 6.0, 3.0, 1.0, 0.5, 0.2, 0.0])
    counted, calls = counting(model)
    paradigms(counted, model.start(sigmas[0], batch=1), sigmas, window=4, max_batch=2, tolerance=0.0)
    assert len(calls) == 10
