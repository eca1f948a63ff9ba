"""Schedules by hand: curves through points against numpy and scipy, and what an edit must leave alone."""

import numpy as np
import pytest
import torch
from comfyui_distillery.samplers.core import check_sigmas
from comfyui_distillery.samplers.schedules.points import INTERPOLATIONS, clipped, merged, shifted, through

from .problems import EPS, FLOW, assert_close, number

POINTS = [14.6, 9.0, 8.9, 3.0, 0.4, 0.03]


def places(points, n):
    return np.arange(len(points)), np.linspace(0, len(points) - 1, n + 1)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 300])
@pytest.mark.parametrize("points", [POINTS, [1.0, 0.9, 0.0], [5.0, 1.0]], ids=str)
def test_curves_are_numpys_and_scipys(points, n):
    pchip = pytest.importorskip("scipy.interpolate").PchipInterpolator
    at, wanted = places(points, n)
    expected = {"linear": np.interp(wanted, at, points), "monotone_cubic": pchip(at, points)(wanted)}
    if points[-1] > 0:
        expected["log_linear"] = np.exp(np.interp(wanted, at, np.log(points)))
    for interpolation, values in expected.items():
        assert_close(through(number(points), n, interpolation), torch.from_numpy(values), 1e-12)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("end", [[], [0.0]], ids=["ends above 0", "ends at 0"])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_a_curve_through_falling_points_falls_and_keeps_its_ends(n, end, interpolation):
    points = number(POINTS + end)
    levels = through(points, n, interpolation)
    check_sigmas(levels)
    assert len(levels) == n + 1
    assert_close(levels[[0, -1]], points[[0, -1]], 1e-12)


def test_log_linear_reaches_0_in_one_last_step():
    assert_close(through(number([16.0, 4.0, 1.0, 0.0]), 5, "log_linear"), number([16.0, 8.0, 4.0, 2.0, 1.0, 0.0]), 1e-12)


def test_merged_knows_a_level_from_its_float32_twin():
    assert merged(number([1.0, 0.7, 0.0]), number([0.7, 0.3])).tolist() == pytest.approx([1, 0.7, 0.3, 0])
    assert len(merged(torch.tensor([0.7]).double(), number([0.7]))) == 1


@pytest.mark.parametrize("path", [EPS, FLOW], ids=["eps", "flow"])
def test_shift_multiplies_noise_over_signal(path):
    levels = number([0.9, 0.5, 0.1])
    ratio = levels / path.alpha(levels)
    ours = shifted(levels, 3.0, path)
    assert_close(ours / path.alpha(ours), 3 * ratio, 1e-12)
    assert torch.equal(shifted(levels, 1.0, path), levels)


def test_shift_keeps_both_ends_of_flow():
    assert shifted(number([1.0, 0.5, 0.0]), 3.0, FLOW).tolist() == pytest.approx([1, 0.75, 0], abs=1e-15)


def test_clipped_parts_meet_and_are_the_whole():
    levels = number([1.0, 0.9, 0.6, 0.3, 0.0])
    high, low = clipped(levels, float("inf"), 0.7), clipped(levels, 0.7, 0.0)
    assert high.tolist() == pytest.approx([1, 0.9, 0.7]) and low.tolist() == pytest.approx([0.7, 0.6, 0.3, 0])
    assert_close(clipped(levels, 2.0, 0.0), levels.float().double(), 1e-15)  # within the limits nothing changes


@pytest.mark.parametrize(
    "message, call",
    [
        (r"points has 1 level\(s\)", lambda: through(number([1.0]), 4, "linear")),
        ("points has 1 level above 0, and log_linear", lambda: through(number([1.0, 0.0]), 4, "log_linear")),
        ("highest is 0.2, lowest 0.5: nothing", lambda: clipped(number([1.0, 0.0]), 0.2, 0.5)),
        ("highest is inf, lowest 3: nothing of the schedule, 1 to 0", lambda: clipped(number([1.0, 0.0]), float("inf"), 3.0)),
    ],
)
def test_bad_points(message, call):
    with pytest.raises(ValueError, match=message):
        call()
