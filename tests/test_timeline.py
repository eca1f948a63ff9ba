"""The picture of a report, read back from the figure before it becomes pixels."""

import sys

import pytest
import torch
from comfyui_distillery.measure import timeline
from comfyui_distillery.measure.report import Report

pytest.importorskip("matplotlib")


def run_of(sigmas, counts=("cond", "uncond"), **more):
    """A run whose steps each took their number of seconds and one evaluation a branch."""
    steps = [
        {"step": i, "sigma": sigma, "calls": 1, "evaluations": dict.fromkeys(counts, 1), "seconds": i + 1.0, **more}
        for i, sigma in enumerate(sigmas)
    ]
    branches = dict.fromkeys(counts, len(steps))
    totals = {"steps": len(steps), "calls": len(steps), "evaluations": sum(branches.values()), "branches": branches,
              "seconds": sum(row["seconds"] for row in steps)}  # fmt: skip
    return {"steps": steps, "totals": totals, "complete": True}


def panels(runs):
    return {axis.get_ylabel(): axis for axis in timeline.plot(runs).axes}


def bars(axis):
    """{label: [(where, from, to)]} of the bars of a panel."""
    return {
        group.get_label(): [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_y() + bar.get_height()) for bar in group]
        for group in axis.containers
    }


def test_a_plain_run_has_sigmas_evaluations_and_seconds():
    drawn = panels([run_of([4.0, 2.0, 1.0])])
    assert list(drawn) == ["sigma", "evaluations", "seconds"]
    [sigmas] = drawn["sigma"].lines
    assert list(sigmas.get_xdata()) == [1, 2, 3] and list(sigmas.get_ydata()) == [4.0, 2.0, 1.0]
    assert bars(drawn["evaluations"]) == {
        "cond": [(1, 0, 1), (2, 0, 1), (3, 0, 1)], "uncond": [(1, 1, 2), (2, 1, 2), (3, 1, 2)],
    }  # fmt: skip
    assert [to for [*_, to] in next(iter(bars(drawn["seconds"]).values()))] == [1, 2, 3]
    assert drawn["seconds"].get_xlabel() == "step"


def test_what_an_accelerator_skipped_and_decided_is_drawn():
    run = run_of([4.0, 2.0])
    run["steps"][1] |= {
        "evaluations": {}, "skipped": {"cond": 1, "uncond": 1}, "blocks": {"done": 2, "skipped": 6}, "decision": "reuse",
    }  # fmt: skip
    drawn = panels([run])
    assert list(drawn) == ["sigma", "evaluations", "blocks", "seconds"]
    assert bars(drawn["evaluations"])["skipped"] == [(1, 2, 2), (2, 0, 2)]
    assert bars(drawn["blocks"]) == {"done": [(1, 0, 0), (2, 0, 2)], "skipped": [(1, 0, 0), (2, 2, 8)]}
    assert [(text.get_text(), text.xy) for text in drawn["evaluations"].texts if text.get_text()] == [("reuse", (2, 2))]


def test_runs_follow_each_other_with_a_line_between():
    drawn = panels([run_of([4.0, 2.0]), run_of([1.0], ("cond 0",))])
    marks, line = drawn["sigma"].lines
    assert list(marks.get_xdata()) == [1, 2, 3] and list(line.get_xdata()) == [2.5, 2.5]
    assert bars(drawn["evaluations"])["cond 0"] == [(1, 2, 2), (2, 2, 2), (3, 0, 1)]
    assert drawn["seconds"].get_xlabel() == "step, counted through all runs"


@pytest.mark.parametrize(("sigmas", "scale"), [([14.6, 1.0, 0.03], "log"), ([1.0, 0.5, 0.02], "linear"), ([None], "linear")])
def test_noise_levels_that_span_decades_get_a_logarithmic_axis(sigmas, scale):
    assert panels([run_of(sigmas)])["sigma"].get_yscale() == scale


def test_the_picture_is_an_image_with_the_totals_on_it():
    figure = timeline.plot([run_of([1.0, 0.5])])
    assert figure.get_suptitle() == "2 steps, 4 model evaluations (2 cond, 2 uncond) in 2 calls, 3.00 s"
    image = timeline.draw([run_of([1.0, 0.5])])
    assert image.dtype == torch.float32 and image.shape[0] == 1 and image.shape[-1] == 3
    assert 0 <= image.min() < 0.5 and image.max() == 1


def test_a_report_without_steps_and_a_missing_matplotlib_are_errors_with_a_remedy(monkeypatch):
    with pytest.raises(ValueError, match="no steps to draw. No sampling run was recorded: sample with the MODEL"):
        timeline.draw(Report().runs)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        timeline.draw([run_of([1.0])])
