"""What all nodes that change a MODEL have in common, in the real CFGGuider."""

import comfy.model_sampling
import pytest
import tiny
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.skipping import SKIPS

FURTHER = {  # what these nodes need beside the model and a method
    "SmartGuidance": {"scale": 4.0, "saving": "balanced"},
    "PromptGuidance": {"prompt": tiny.prompt(3)},
    "Autoguidance": {"weak": {"weak": "without blocks", "start": 0.4, "end": 0.6}, "share": 1.0},
    "TurboCheck": {"profile": "shapes-turbo-dit"},
    "Cache": {"strength": 0.5, "preset": "automatic"},
    "CacheParts": {"policy": {"policy": "interval"}, "forecast": {"forecast": "reuse"}, "site": {"site": "prediction"}},
}


def model_nodes(nodes):
    """(node, its inputs beside the model) for each node that gives back a MODEL, and each method it offers."""
    for name, node in nodes.items():
        schema = node.GET_SCHEMA() if name.startswith("Distillery_") else None
        if schema and schema.inputs[0].io_type == schema.outputs[0].io_type == "MODEL":
            methods = [option.key for entry in schema.inputs if entry.id == "method" for option in entry.options]
            given = FURTHER.get(name.removeprefix("Distillery_"), {})
            if given or len(schema.inputs) == 1 + bool(methods):  # a discriminator has to be fitted: tests/host/test_discriminator.py
                yield from ((node, {"method": {"method": method}, **given}) for method in methods) if methods else [(node, given)]


def test_model_nodes_return_a_clone_that_refuses_a_foreign_latent(nodes, flow):
    model, _ = flow
    found = list(model_nodes(nodes))
    assert len(found) >= 1 + len(RULES) + len(SKIPS) + len(FURTHER)
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
