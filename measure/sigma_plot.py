"""Schedules of noise levels as a picture and a table."""

import math

from .plots import new_figure, to_image
from .timeline import is_wide

WIDTH, HEIGHT = 480, 360  # pixels of one panel
HALVINGS, DIGITS = 24, 6  # float32 tells no finer shares apart


def percents(sigmas, percent_to_sigma):
    """The share of sampling that is over at each noise level, in [0, 1]: the inverse of a falling ``percent_to_sigma``.

    Halves an interval; a level that holds for a range of shares, or lies outside, gets the last share not below it.
    """
    found = []
    for sigma in sigmas:
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if percent_to_sigma(middle) >= sigma else (low, middle)
        found.append(round(high, DIGITS))
    return found


def table(schedules):
    """Text: for each schedule its name, and a line a step under the names of its columns. See ``plot`` for schedules."""
    blocks = []
    for name, columns in schedules.items():
        lines = [name, "step" + "".join(f"{column:>12}" for column in columns)]
        for step, values in enumerate(zip(*columns.values())):
            lines.append(f"{step:4}" + "".join(f"{value:12.5g}" if math.isfinite(value) else f"{'-':>12}" for value in values))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def summary(schedules):
    """One line a schedule: how many steps, from where to where."""
    spans = {name: (len(columns["sigma"]) - 1, columns["sigma"][0], columns["sigma"][-1]) for name, columns in schedules.items()}
    return "\n".join(f"{name}: {steps} steps, sigma {first:.5g} to {last:.5g}" for name, (steps, first, last) in spans.items())


def draw(schedules):
    """``plot`` as an IMAGE (1, H, W, 3)."""
    return to_image(plot(schedules))


def plot(schedules):
    """Schedules against the step as a matplotlib Figure: one panel for each column.

    schedules is {name: {column: values, "sigma" first}}, all with the same columns; a value that is not finite is a gap.
    Where the levels of a schedule span decades, sigma has a second panel with a logarithmic axis. Raises ValueError
    without matplotlib.
    """
    columns = list(next(iter(schedules.values())))
    panels = [(column, "linear") for column in columns]
    if any(is_wide(shown["sigma"]) for shown in schedules.values()):
        panels.insert(1, ("sigma", "log"))
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure, axes = new_figure(WIDTH * across, HEIGHT * down, down, across)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (column, scale) in zip(axes.flat, panels):
        for name, shown in schedules.items():
            values = [value if math.isfinite(value) and (value > 0 or scale == "linear") else math.nan for value in shown[column]]
            axis.plot(range(len(values)), values, marker="o", markersize=3, label=name)
        axis.set(xlabel="step", ylabel=column if scale == "linear" else f"{column}, logarithmic", yscale=scale)
        axis.locator_params("x", integer=True)
    axes[0, 0].legend()
    return figure
