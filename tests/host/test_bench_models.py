"""What the benchmarks sample: exact problems as ComfyUI models, and full-size architectures. No seconds are judged."""

import math

import pytest
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS

from bench import architectures, gpu, guidance, guidance_quality, hosted, overhead, problems, solvers
from bench.timing import relative_error

LADDER = guidance.ladder


@pytest.mark.parametrize("path", ["eps", "flow"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_core_solvers_converge_on_the_exact_end_points(nodes, path, scale):
    """heun at second order, until what the schedule leaves for its last step shows."""
    task, expected = problems.as_task(Path(path), scale, batch=16)
    errors = [relative_error(task.sample(hosted.core("heun"), task.sigmas(steps)), expected) for steps in (20, 40)]
    assert errors[1] < errors[0] / 3
    assert errors[1] < 3e-3


def test_evaluations_are_those_of_the_network(nodes):
    task, _ = problems.as_task(Path("flow"), batch=2)
    for name, steps, evaluations in (("euler", 5, 5), ("heun", 5, 9), ("dpmpp_2m", 7, 7), ("uni_pc", 6, 6)):
        latent, counted = task.counted(hosted.core(name), task.sigmas(steps))
        assert counted == evaluations, name
        assert torch.equal(latent, task.sample(hosted.core(name), task.sigmas(steps)))


def test_the_solver_benchmark_has_every_solver_at_every_budget(nodes, monkeypatch):
    monkeypatch.setattr(solvers, "GUIDANCE", (1.0,))
    result = solvers.measure(budgets=(6, 8), reference=8, pictures=1)
    ours = {name for name, solver in SOLVERS.items() if not solver.stochastic and solver.family != "turbo"}
    assert {row["solver"] for row in result.rows} == ours | {f"core {name}" for name in solvers.CORE}
    assert all(row["evaluations"] <= row["budget"] and 0 < row["error"] < 10 for row in result.rows)
    assert len(result.rows) == 4 * 2 * (len(ours) + len(solvers.CORE)) and len(result.table) == 4 * 2
    for line in result.table:
        errors = {
            row["solver"]: row["error"]
            for row in result.rows
            if (row["problem"], row["budget"]) == (line["problem"], line["evaluations"])
        }
        assert line["its error"] == min(errors[name] for name in ours) == errors[line["best of ours"]]
        assert line["ratio"] == line["its error"] / min(error for name, error in errors.items() if name not in ours)


def test_the_most_steps_that_fit():
    assert solvers.most_steps(lambda steps: 2 * steps - 1, 10) == 5
    assert solvers.most_steps(lambda steps: 2 * steps, 1) is None


def test_pictures_of_a_batch_have_their_own_prompts(nodes):
    task = hosted.bundled(pictures=2)
    both = task.sample(hosted.core("euler"), task.sigmas(4))
    first = hosted.bundled(pictures=1)
    alone = hosted.Task(first.model, first.positive, first.negative, first.cfg, task.noise[:1])
    torch.testing.assert_close(both[:1], alone.sample(hosted.core("euler"), task.sigmas(4)), rtol=1e-2, atol=1e-2)


def test_overhead_compares_equals_with_equals(nodes):
    rows = {row["candidate"]: row for row in overhead.measure(steps=4, times=2).rows}
    assert rows["Trace"]["difference"] == rows["Adaptive Guidance, nothing to skip"]["difference"] == 0
    unskipped = [name for name in rows if name.startswith("Cache")]
    assert len(unskipped) == sum(map(len, overhead.CACHES.values())) and not any(rows[name]["difference"] for name in unskipped)
    assert rows["ghvb, order 2"]["difference"] < 1e-3 and rows["lambda_ddim"]["difference"] < 1e-3
    assert rows["APG"]["difference"] > 1e-3


def test_the_guidance_benchmark_measures_every_rule_on_both_models(nodes, monkeypatch):
    monkeypatch.setattr(guidance, "ladder", lambda steps: {name: rows[:1] for name, rows in LADDER(steps).items()})
    result = guidance.measure(scales=(5.0,), steps=(6,), pictures=1)
    assert len(result.rows) == len(result.table) == 2 * len(LADDER(6)) and len(guidance.MODELS) == 2
    assert all(0 <= row["saved"] <= 0.5 and math.isfinite(row["error"]) for row in result.rows)
    assert all((row["error"] == 0) == (row["saved"] == 0) for row in result.rows if row["rule"] != guidance.RIVAL)


def test_the_quality_benchmark_examines_every_rule_and_smart_guidance(nodes):
    rows = guidance_quality.measure(models=("shapes-dit",), count=20, batch=20, steps=2).rows
    assert [row["rule"] for row in rows if row["scale"] == guidance_quality.SCALE][1:-1] == list(guidance_quality.candidates())
    full = {row["scale"]: row for row in rows if row["rule"] == "full guidance"}
    assert all(row["lost"] == pytest.approx(100 * (full[row["scale"]]["right"] - row["right"])) for row in rows)
    assert all(row["saved"] == 0 for row in full.values()) and all(0 <= row["saved"] <= 0.5 for row in rows)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_full_size_networks_have_the_published_number_of_parameters(nodes, name):
    network = architectures.build(name, "meta").diffusion_model
    count = sum(tensor.numel() for tensor in [*network.parameters(), *network.buffers()])
    assert count / 1e9 == pytest.approx(architectures.ARCHITECTURES[name].billions, rel=0.02)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_the_gpu_benchmark_runs_on_tiny_networks(nodes, name):
    rows = gpu.measure_one(name, "cpu", tiny=True, steps=4, times=2)
    presets = gpu.CACHES[name]
    assert [row["candidate"] for row in rows] == ["Trace", "APG", "ghvb", *(f"Cache, {preset}" for preset in presets)]
    assert all(math.isfinite(row["ratio"]) and row["peak GiB"] is None for row in rows)
    assert [row["skipped"] for row in rows] == [0, 0, 0, *[1] * len(presets)]


def test_what_a_skipped_step_takes():
    assert gpu.share(0.5, 10, 5) == 0  # half of the run is left, and half of its steps were evaluated
    assert gpu.share(1.0, 10, 4) == 1
    assert gpu.share(0.31, 10, 7) == pytest.approx(0.1 / 7)


def test_without_a_gpu_the_benchmark_says_so(nodes):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(gpu.Unavailable, match="no CUDA GPU"):
        gpu.measure()
