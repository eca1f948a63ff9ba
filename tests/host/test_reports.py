"""Trace and Show Report on real sampling runs."""

import csv
import json
import os
import resource
import sys

import comfy.model_management
import comfy.samplers
import folder_paths
import pytest
import tiny
import torch
from comfy_execution.graph import ExecutionBlocker
from PIL import Image


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """ComfyUI's output and temp folders, empty."""
    for kind in ("output", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path


def traced(nodes, model):
    return tiny.run(nodes["Distillery_Trace"], model=model)


@pytest.fixture
def report(nodes, flow):
    """The report of a run of five Heun steps."""
    model, shape = flow
    watched, report = traced(nodes, model)
    tiny.sample(watched, tiny.noise_for(shape, [1]), sampler="heun", steps=5)
    return report


def show(nodes, report, **inputs):
    return nodes["Distillery_ShowReport"].EXECUTE_NORMALIZED(report=report, latent={}, **inputs)


# Trace


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_trace_changes_nothing(nodes, flow, name):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    torch.manual_seed(0)
    plain = tiny.sample(model, noise, sampler=name)
    watched, report = traced(nodes, model)
    torch.manual_seed(0)
    assert torch.equal(tiny.sample(watched, noise, sampler=name), plain)
    assert report.runs[0]["totals"]["evaluations"] > 0


@pytest.mark.parametrize(
    ("sampler", "cfg", "evaluations", "per_step"),
    [("euler", 4.0, 10, [2, 2, 2, 2, 2]), ("euler", 1.0, 5, [1] * 5), ("heun", 4.0, 18, [4, 4, 4, 4, 2])],
)
def test_trace_counts_evaluations(nodes, built, sampler, cfg, evaluations, per_step):
    model, shape = built
    watched, report = traced(nodes, model)
    tiny.sample(watched, tiny.noise_for(shape, [1, 2]), sampler=sampler, steps=5, cfg=cfg)
    (run,) = report.runs
    assert run["totals"]["evaluations"] == evaluations
    assert [sum(row["evaluations"].values()) for row in run["steps"]] == per_step
    assert [row["step"] for row in run["steps"]] == [0, 1, 2, 3, 4]
    assert run["complete"]
    assert run["totals"]["seconds"] >= sum(row["seconds"] for row in run["steps"]) > 0


def test_trace_of_an_interrupted_run_says_so(nodes, flow):
    model, shape = flow
    watched, report = traced(nodes, model)

    def stop(step, denoised, x, total):
        if step == 2:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(watched, tiny.noise_for(shape, [1]), steps=6, callback=stop)
    assert report.runs[0]["totals"]["steps"] == 3 and not report.runs[0]["complete"]


def test_trace_tells_peak_memory_where_the_device_counts_it(nodes, flow):
    model, shape = flow
    watched, report = traced(nodes, model)
    tiny.sample(watched, tiny.noise_for(shape, [1]))
    (run,) = report.runs
    if model.load_device.type != "cuda":
        assert "peak_memory" not in run["totals"]
    else:
        held = torch.cuda.memory_allocated(model.load_device)
        assert held < run["totals"]["peak_memory"] <= torch.cuda.max_memory_allocated(model.load_device)


# Show Report


def test_it_shows_the_timeline_and_the_totals(nodes, report, folders):
    output = show(nodes, report)
    text, as_json, image = output.args
    assert text.startswith("5 steps, 18 model evaluations (9 cond, 9 uncond)")
    assert json.loads(as_json) == output.ui["report"] == report.runs
    assert output.ui["text"] == [text]
    [picture] = output.ui["images"]
    assert picture["type"] == "temp"
    shown = Image.open(folders / "temp" / picture["filename"])
    assert shown.size == (image.shape[2], image.shape[1])
    assert not os.listdir(folders / "output")


@pytest.mark.parametrize(
    ("save", "endings"), [("nothing", []), ("JSON", ["json"]), ("CSV", ["csv"]), ("JSON and CSV", ["csv", "json"])]
)
def test_it_saves_what_was_asked_for_and_counts_on(nodes, report, folders, save, endings):
    for number in (1, 2):
        output = show(nodes, report, save=save, filename_prefix="runs/%year%/mine")
        names = [f"mine_{number:05}_.{ending}" for ending in endings]
        assert sorted(file["filename"] for file in output.ui["files"]) == names
    made = sorted(path for path in (folders / "output").rglob("*") if path.is_file())
    assert [path.name for path in made] == sorted(f"mine_{number:05}_.{ending}" for number in (1, 2) for ending in endings)
    for path in made:
        assert path.parent.parent == folders / "output" / "runs" and path.parent.name.isdigit()
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            assert json.loads(text) == report.runs
        else:
            rows = list(csv.DictReader(text.splitlines()))
            assert [int(row["calls"]) for row in rows] == [row["calls"] for row in report.runs[0]["steps"]]


def test_a_report_that_cannot_be_written_whole_is_not_there_at_all(nodes, report, folders):
    """The disk fills up: files cannot grow beyond 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"mine_00001_\.json could not be written"):
            show(nodes, report, save="JSON", filename_prefix="mine")
        text = show(nodes, report).ui["text"][0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert text.startswith("5 steps") and "No picture is shown, as it could not be saved" in text
    assert not os.listdir(folders / "output")


@pytest.mark.parametrize("prefix", ["", "../mine", "a/../../mine", "/tmp/mine", "..", "."])
def test_it_saves_nothing_outside_the_output_folder(nodes, report, folders, prefix):
    with pytest.raises(ValueError, match="filename_prefix is .*: give a relative one"):
        show(nodes, report, save="JSON", filename_prefix=prefix)
    assert not [path for path in folders.rglob("*") if path.is_file()]


def test_without_matplotlib_it_still_tells_the_numbers(nodes, report, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = show(nodes, report)
    text, as_json, image = output.args
    assert text.startswith("5 steps") and json.loads(as_json) == report.runs
    assert isinstance(image, ExecutionBlocker) and "pip install matplotlib" in image.message
    assert "No picture. matplotlib: not installed" in output.ui["text"][0] and "images" not in output.ui
    assert not os.listdir(folders / "temp")


def test_a_model_that_sampled_nothing_is_said_to(nodes, flow):
    _, report = traced(nodes, flow[0])
    text, as_json, image = show(nodes, report).args
    assert text.startswith("No sampling run was recorded") and as_json == "[]"
    assert isinstance(image, ExecutionBlocker) and image.message == text
