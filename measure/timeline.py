"""The picture of a report: what each step of a sampling run did, from top to bottom of one page."""

import itertools
import math
from functools import partial

from .plots import new_figure, to_image
from .report import names_of, summary

WIDTH, PANEL, LINE = 900, 190, 20  # pixels
DECADES = 2  # noise levels that span more are drawn on a logarithmic axis
SKIPPED = {"color": "none", "edgecolor": "gray", "hatch": "///"}


def draw(runs):
    """``plot`` as an IMAGE (1, H, W, 3)."""
    return to_image(plot(runs))


def plot(runs):
    """The runs of a report (``measure.report``), one after the other, as a matplotlib Figure; steps count from 1.

    Panels: noise level; evaluations by branch, hatched where they were skipped; blocks done and skipped, where the rows
    count them; each value that was measured on the way; seconds. A word of ``decision`` stands over the bars of its step where there is room.
    Raises ValueError for a report without steps, or without matplotlib.
    """
    rows = [row for run in runs for row in run["steps"]]
    if not rows:
        raise ValueError(f"report: has no steps to draw. {summary(runs)}")
    curves = [partial(_curve, name=name) for name in names_of(rows, "values")]
    panels = [_sigmas, _evaluations, *([_blocks] if names_of(rows, "blocks") else []), *curves, _seconds]
    words = summary(runs)
    height = PANEL * len(panels) + LINE * (2 + words.count("\n"))
    figure, axes = new_figure(WIDTH, height, rows=len(panels))
    ends = list(itertools.accumulate(len(run["steps"]) for run in runs))
    for axis, panel in zip(axes[:, 0], panels):
        panel(axis, rows)
        axis.set_xlim(0.5, len(rows) + 0.5)
        axis.locator_params("x", integer=True)
        for end in ends[:-1]:
            axis.axvline(end + 0.5, color="black", linewidth=1, linestyle="--")
    axes[-1, 0].set_xlabel("step" if len(runs) == 1 else "step, counted through all runs")
    figure.suptitle(words, fontsize=9)
    return figure


def is_wide(sigmas):
    """Whether the positive ones of these noise levels span more than ``DECADES`` powers of ten."""
    levels = [sigma for sigma in sigmas if sigma is not None and sigma > 0]
    return bool(levels) and max(levels) > min(levels) * 10**DECADES


def _positions(rows):
    return range(1, len(rows) + 1)


def _sigmas(axis, rows):
    sigmas = [math.nan if row["sigma"] is None else row["sigma"] for row in rows]
    axis.plot(_positions(rows), sigmas, marker="o", markersize=4, linestyle="none", color="tab:purple")
    axis.set_yscale("log" if is_wide(sigmas) else "linear")
    axis.set_ylabel("sigma")


def _stack(axis, rows, parts):
    """Bars on top of each other: for each (label, numbers, style)."""
    tops = [0] * len(rows)
    for label, numbers, style in parts:
        axis.bar(_positions(rows), numbers, bottom=tops, label=label, width=0.8, **style)
        tops = [top + number for top, number in zip(tops, numbers)]
    axis.set_ylim(0, 1.3 * max(*tops, 1))  # room for words and the legend
    axis.locator_params("y", integer=True)
    axis.legend(loc="upper right", ncols=4, fontsize=8)
    return tops


def _evaluations(axis, rows):
    branches = [(name, _counts(rows, "evaluations", name), {}) for name in names_of(rows, "evaluations")]
    skipped = [sum(row.get("skipped", {}).values()) for row in rows]
    tops = _stack(axis, rows, [*branches, *([("skipped", skipped, SKIPPED)] if any(skipped) else [])])
    if len(rows) <= 40:  # else words would cover each other
        for position, top, row in zip(_positions(rows), tops, rows):
            axis.annotate(row.get("decision", ""), (position, top), ha="center", va="bottom", fontsize=7)
    axis.set_ylabel("evaluations")


def _blocks(axis, rows):
    done, skipped = _counts(rows, "blocks", "done"), _counts(rows, "blocks", "skipped")
    _stack(axis, rows, [("done", done, {"color": "tab:green"}), ("skipped", skipped, SKIPPED)])
    axis.set_ylabel("blocks")


def _curve(axis, rows, name):
    axis.plot(_positions(rows), [row.get("values", {}).get(name, math.nan) for row in rows], marker="o", markersize=4)
    axis.set_ylabel(name)


def _seconds(axis, rows):
    axis.bar(_positions(rows), [row["seconds"] for row in rows], width=0.8, color="tab:gray")
    axis.set_ylabel("seconds")


def _counts(rows, key, name):
    return [row.get(key, {}).get(name, 0) for row in rows]
