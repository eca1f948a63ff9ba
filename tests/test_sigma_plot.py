"""The plot of schedules: the inverse of percent_to_sigma, the table, and the figure before it becomes pixels."""

import math

import pytest
from comfyui_distillery.measure import sigma_plot

KARRAS = [14.6, 3.0, 0.4, 0.03, 0.0]
FLOW = [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_percent_is_the_inverse_of_the_schedule_of_a_flow_model(shift):
    def percent_to_sigma(percent):
        return shift * (1 - percent) / (1 + (shift - 1) * (1 - percent))

    expected = [1 - sigma / (shift - (shift - 1) * sigma) for sigma in FLOW]
    assert sigma_plot.percents(FLOW, percent_to_sigma) == pytest.approx(expected, abs=2e-6)


def test_levels_beyond_the_model_are_at_its_ends():
    assert sigma_plot.percents([5.0, 0.0, -1.0], lambda percent: 2 - percent) == [0, 1, 1]


def test_the_table_has_a_line_a_step():
    text = sigma_plot.table({"a": {"sigma": [2.0, 0.0], "timestep": [999.0, -math.inf]}, "b": {"sigma": [1.0], "timestep": [1.0]}})
    assert [line.split() for line in text.splitlines()] == [
        ["a"], ["step", "sigma", "timestep"], ["0", "2", "999"], ["1", "0", "-"], [],
        ["b"], ["step", "sigma", "timestep"], ["0", "1", "1"],
    ]  # fmt: skip


def panels(schedules):
    pytest.importorskip("matplotlib")
    return {(axis.get_ylabel(), axis.get_yscale()): axis for axis in sigma_plot.plot(schedules).axes}


def test_schedules_are_drawn_against_the_step_with_their_names():
    drawn = panels({"core": {"sigma": FLOW, "percent": [0, 0.25, 0.5, 0.75, 1]}, "short": {"sigma": FLOW[::2], "percent": [0, 0.5, 1]}})
    assert list(drawn) == [("sigma", "linear"), ("percent", "linear")]
    first, second = drawn["sigma", "linear"].lines
    assert list(first.get_xdata()) == [0, 1, 2, 3, 4] and list(first.get_ydata()) == FLOW
    assert list(second.get_ydata()) == FLOW[::2]
    assert [text.get_text() for text in drawn["sigma", "linear"].get_legend().get_texts()] == ["core", "short"]
    assert list(drawn["percent", "linear"].lines[1].get_ydata()) == [0, 0.5, 1]


def test_levels_that_span_decades_are_drawn_logarithmically_too():
    drawn = panels({"karras": {"sigma": KARRAS}, "flow": {"sigma": FLOW}})
    assert list(drawn) == [("sigma", "linear"), ("sigma, logarithmic", "log")]
    shown = list(drawn["sigma, logarithmic", "log"].lines[0].get_ydata())
    assert shown[:4] == KARRAS[:4] and math.isnan(shown[4])


def test_the_picture_is_an_image():
    pytest.importorskip("matplotlib")
    image = sigma_plot.draw({"a": {"sigma": FLOW}})
    assert image.shape[0] == 1 and image.shape[-1] == 3 and image.min() < 0.5 and image.max() == 1
