"""The toy table of the benchmark, shortened: every objective brings the data nearer in its number of steps, on both paths."""

import pytest
from comfyui_distillery.distill.objectives import OBJECTIVES

from bench.distill_toy import LEVELS, ToyRoles, distances, quick, sliced_distance, train


# undistilled, Euler: flow 1.42, 0.45, 0.11 and VE 1.29, 0.31, 0.15 in 1, 2, 4 steps
@pytest.mark.parametrize(
    "name, path, steps, most",  # the largest distance allowed after 1, 2 and 4 steps; measured, about two thirds of it
    [
        ("phased, 4 phases", "flow", 300, (None, None, 0.11)),
        ("phased, 4 phases", "eps", 300, (None, None, 0.12)),
        ("progressive, 32 to 4 steps", "eps", 700, (None, None, 0.14)),
        ("consistency, 5 to 40 levels", "flow", 600, (0.3, 0.25, 0.15)),
        ("consistency, 5 to 40 levels", "eps", 600, (0.3, 0.25, 0.15)),
        ("trajectory, 4 phases", "eps", 500, (None, None, 0.14)),
        ("reflow", "flow", 600, (0.2, 0.2, None)),
        ("reflow, annealed", "eps", 600, (0.3, 0.25, None)),
    ],
)
def test_students_come_near_the_data_in_few_steps(name, path, steps, most):
    recipe, levels = quick(name, steps), LEVELS[path]
    roles, result = train(recipe, levels)
    got = distances(roles, "ema", levels, OBJECTIVES[recipe.objective].sampler)
    undistilled = distances(roles, "teacher", levels, "euler")
    assert all(limit is None or value < min(limit, 0.8 * plain) for value, limit, plain in zip(got, most, undistilled)), got
    assert result.ended == "done" and not result.counters.skipped


def test_the_undistilled_teacher_is_far_in_few_steps_and_near_in_many():
    for path, levels in LEVELS.items():
        roles = ToyRoles(levels, {})
        few, many = distances(roles, "teacher", levels, "euler", (1, 30))
        assert few > 1.2 and many < 0.12, path
        assert sliced_distance(roles.data(4000, 1), roles.data(4000, 2)) < 0.03


def test_the_distance_is_that_of_shifted_sets():
    """Of a set and itself moved by d, every direction sees the part of d along it: |d| / sqrt 2 over all of them."""
    data = ToyRoles(LEVELS["flow"], {}).data(800, 0)
    moved = data + data.new_tensor([3.0, -4.0])
    assert sliced_distance(data, moved) == pytest.approx(5 / 2**0.5, rel=1e-4)
