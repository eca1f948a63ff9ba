"""The Auto Sampler: what it runs is what its table says, and the table is what the tool chooses."""

import pytest
import torch
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.auto import CHOICES, choice

from tools import choose_solver

from .problems import PATHS, gaussian, graded

ROWS = [(kind, row) for kind, rows in CHOICES.items() for row in rows]


@pytest.mark.parametrize("kind, row", ROWS, ids=str)
def test_every_choice_calls_the_model_once_a_step_and_draws_no_noise(kind, row):
    solver = SOLVERS[row["solver"]]
    assert not solver.stochastic
    assert [solver.count(steps, **row["knobs"]) for steps in (2, 9, 30)] == [2, 9, 30]


def test_there_is_a_choice_for_every_kind_of_model_and_number_of_steps():
    assert set(CHOICES) == {"ve", "flow"}
    for rows in CHOICES.values():
        steps = [row["steps"] for row in rows]
        assert steps == sorted(set(steps)) and steps[0] <= 2


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 11, 25, 60])
def test_it_is_the_solver_that_the_table_names(name, steps):
    path = PATHS[name]
    rows = CHOICES["flow" if path.is_flow else "ve"]
    expected = [row for row in rows if row["steps"] <= max(steps, rows[0]["steps"])][-1]
    assert choice(path, steps) == expected
    model = gaussian(path)
    sigmas = graded(steps, *{"eps": (10.0, 0.1), "flow": (1.0, 0.1)}[name])
    x = model.start(sigmas[0])
    named = SOLVERS[expected["solver"]](model, x, sigmas, path=path, **expected["knobs"])
    assert torch.equal(SOLVERS["auto"](model, x, sigmas, path=path), named)


def test_the_winner_has_the_least_mean_log_error():
    assert choose_solver.winner({0: [1.0, 1.0], 1: [0.1, 5.0], 2: [0.01, 99.0], 3: [0.5, 0.9]}) == 3
    assert choose_solver.winner({0: [1.0, 1.0], 1: [0.01, 5.0]}) == 1


def test_a_choice_that_repeats_takes_no_further_row():
    everyone = choose_solver.candidates()
    best = {2: 3, 3: 3, 4: 5, 5: 3}
    found = {
        (kind, steps): {number: [0.5 if number == wins else 1.0] for number in range(len(everyone))}
        for kind in ("ve", "flow")
        for steps, wins in best.items()
    }
    for rows in choose_solver.choose(found).values():
        assert [(row["steps"], row["solver"], row["knobs"]) for row in rows] == [
            (steps, *everyone[number]) for steps, number in ((2, 3), (4, 5), (5, 3))
        ]
