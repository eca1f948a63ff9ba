"""Traced models and what all nodes that change a MODEL have in common, in the real CFGGuider."""

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance import RULES

CORE_SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if not name.endswith("_gpu")]


# Reports


def traced(nodes, model):
    return tiny.run(nodes["Distillery_Trace"], model=model)


@pytest.mark.parametrize("name", CORE_SAMPLERS)
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


# Every node that takes a model


def model_nodes(nodes):
    """(node, its inputs beside the model) for each node that gives back a MODEL, and each method it offers."""
    for name, node in nodes.items():
        schema = node.GET_SCHEMA() if name.startswith("Distillery_") else None
        if schema and schema.inputs[0].io_type == schema.outputs[0].io_type == "MODEL":
            methods = [option.key for entry in schema.inputs if entry.id == "method" for option in entry.options]
            yield from ((node, {"method": {"method": method}}) for method in methods) if methods else [(node, {})]


def test_model_nodes_return_a_clone_that_refuses_a_foreign_latent(nodes, flow):
    model, _ = flow
    found = list(model_nodes(nodes))
    assert len(found) >= 1 + len(RULES)
    for node, inputs in found:
        patched = tiny.run(node, model=model, **inputs)[0]
        assert patched is not model and not model.wrappers.get("outer_sample")
        with pytest.raises(ValueError, match="latent_image has 4 channels and this model works on 16"):
            tiny.sample(patched, tiny.noise_for((4, 8, 8), [1]))


def test_an_unknown_prediction_type_is_named(nodes):
    model, _ = tiny.build("eps")

    class Unknown(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG):
        pass

    model.add_object_patch("model_sampling", Unknown(model.model.model_config))
    with pytest.raises(ValueError, match="prediction type IMG_TO_IMG"):
        tiny.run(nodes["Distillery_Schedule"], model=model, method={"method": "uniform_lambda"}, steps=4, denoise=1.0)
