"""Caches on networks that core's TorchCompileModel compiles: the same result and the same skips, and no compiling step after step."""

import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.supported_models
import pytest
import tiny
import torch
from comfyui_distillery.nodes.cache import SITES
from test_cache import every_second, usual

STEPS = 7
UNET = {**tiny.SD1, "channel_mult": (1,), "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]}
FOR_DITS = {"prediction", "blocks"}  # the others are tried on a UNet


@pytest.fixture(autouse=True)
def attention_as_on_a_gpu(monkeypatch):
    """Core's attention for a CPU asks the system how much memory is free, which breaks what is compiled into many small pieces."""
    attention = comfy.ldm.modules.attention
    for module in (attention, comfy.ldm.flux.math):
        monkeypatch.setattr(module, "optimized_attention", attention.attention_pytorch)


@pytest.fixture(scope="module")
def models():
    unet = tiny.build_from(comfy.supported_models.SD15, UNET)
    return {"unet": (unet, (4, 8, 8)), "dit": tiny.build("flow")}


class Counting:
    """A backend of torch.compile that runs each graph as it is, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs, options=None):
        self.graphs += 1
        return graph


def cached(nodes, model, site):
    """(model, report)"""
    return every_second(nodes, model, site=site, min_steps=1)


@pytest.mark.parametrize("site", SITES)
def test_compiled_networks_are_cached_as_others_are(nodes, models, site):
    torch._dynamo.reset()
    model, shape = models["dit" if site in FOR_DITS else "unet"]
    noise, backend = tiny.noise_for(shape, [1]), Counting()

    def compiled(model):
        return tiny.run(nodes["TorchCompileModel"], model=model, backend=backend)[0]

    def counted(model):
        """(result, graphs made until the end of each step)"""
        graphs = []
        return tiny.sample(model, noise, steps=STEPS, callback=lambda *_: graphs.append(backend.graphs)), graphs

    plain, _ = counted(model)
    patched, report = cached(nodes, model, site)
    expected, _ = counted(patched)
    skipping = usual(report.runs[-1])
    assert not torch.equal(expected, plain) and backend.graphs == 0
    for first in ("compile", "cache"):
        if first == "compile":
            patched, report = cached(nodes, compiled(model), site)
        else:
            patched, report = cached(nodes, model, site)
            patched = compiled(patched)
        made, graphs = counted(patched)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert usual(report.runs[-1]) == skipping
        assert graphs[0] > 0 and len(set(graphs[2:])) == 1, "each step compiles"
        assert len(set(counted(patched)[1])) == 1, "each run compiles"
        assert usual(report.runs[-1]) == skipping
    assert torch.equal(counted(model)[0], plain)
