"""Sigma Plot, with the schedules and models of core."""

import sys

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_execution.graph import ExecutionBlocker


@pytest.fixture(autouse=True)
def temp_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def run(nodes, *schedules, **inputs):
    """(image, text, ui)"""
    sigmas = {f"sigmas_{i}": levels for i, levels in enumerate(schedules)}
    output = nodes["Distillery_SigmaPlot"].EXECUTE_NORMALIZED(sigmas=sigmas, **inputs)
    return *output.args, output.ui


def columns(text):
    """{column: values} of a table of one schedule."""
    head, *lines = [line.split() for line in text.splitlines()[1:]]
    return {name: [float(value) for value in values] for name, values in zip(head, zip(*lines))}


def test_percent_and_timestep_are_the_models_own(nodes, built):
    sampling = built[0].get_model_object("model_sampling")
    shares = [0.0, 0.1, 0.35, 0.6, 0.99]
    levels = torch.tensor([float(sampling.sigma_max), *map(sampling.percent_to_sigma, shares[1:]), 0.0])
    image, text, shown = run(nodes, levels, model=built[0])
    table = columns(text)
    assert table["step"] == [0, 1, 2, 3, 4, 5]
    assert table["sigma"] == pytest.approx(levels.tolist(), rel=1e-4)
    assert table["percent"] == pytest.approx([*shares, 1.0], abs=2e-3)  # eps models round to 1 in 1000
    assert table["timestep"] == pytest.approx(sampling.timestep(levels).tolist(), rel=1e-4)
    assert image.shape[0] == 1 and len(shown["images"]) == 1


def test_several_schedules_are_told_apart_by_name(nodes, flow):
    schedules = [
        comfy.samplers.calculate_sigmas(flow[0].get_model_object("model_sampling"), name, 10) for name in ("simple", "beta")
    ]
    _, text, _ = run(nodes, *schedules)
    assert [line for line in text.splitlines() if line.startswith("sigmas_")] == ["sigmas_0", "sigmas_1"]
    _, _, shown = run(nodes, *schedules, names="simple, beta")
    assert shown["text"] == ["simple: 10 steps, sigma 1 to 0\nbeta: 10 steps, sigma 1 to 0"]


@pytest.mark.parametrize(
    ("schedule", "inputs", "said"),
    [
        (torch.tensor([]), {}, "sigmas_0 has the shape .*denoise 0"),
        (torch.ones(2, 3), {}, "sigmas_0 has the shape"),
        (torch.tensor([1.0, torch.nan, 0.0]), {}, "sigmas_0 holds NaN"),
        (torch.tensor([1.0, 0.0]), {"names": "a, b"}, "names is 'a, b': give 1 different names"),
    ],
)
def test_what_is_no_schedule_is_named(nodes, schedule, inputs, said):
    with pytest.raises(ValueError, match=said):
        run(nodes, schedule, **inputs)


def test_two_schedules_cannot_have_one_name(nodes):
    with pytest.raises(ValueError, match="different names"):
        run(nodes, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), names="a,a")


def test_without_matplotlib_the_table_is_still_there(nodes, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    image, text, _ = run(nodes, torch.tensor([1.0, 0.5, 0.0]))
    assert isinstance(image, ExecutionBlocker) and "pip install matplotlib" in image.message
    assert columns(text)["sigma"] == [1, 0.5, 0]
