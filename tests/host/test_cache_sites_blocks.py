"""The blocks of a cache's site: its signal, what it does to ControlNets, skip connections and compiled networks."""

import pytest
import torch
from comfyui_distillery.nodes.architectures import blocks_of
from comfyui_distillery.nodes.host_blocks import forwards
from comfyui_distillery.nodes.host_sites import Blocks
from comfyui_distillery.nodes.host_sites_parts import Parts
from test_cache_sites import SKIPPING, caller, never
from tiny_architectures import build


@pytest.mark.parametrize("name, first, group, stream", [
    ("SD3", 1, [0], 1), ("SD3", 2, [0, 1], 1), ("Flux", 1, [0], 0), ("Flux", 2, [0, 1], 0), ("Flux", 3, [2], None),
    ("AuraFlow", 2, [0, 1], 1), ("Qwen-Image", 1, [0], 1), ("Wan", 2, [0, 1], None), ("LTXAV", 1, [0], 0),
])  # fmt: skip
def test_the_signal_is_what_the_first_blocks_add_to_the_main_stream(name, first, group, stream):
    network, signals = build(name), []
    blocks = blocks_of(network)
    ends = {}

    def entering(forward, *args, **kwargs):
        streams = blocks[group[0]].group.inputs(args, kwargs)
        ends["in"] = [part.clone() for part in (streams if stream is not None and len(streams) > 1 else _parts(streams[0]))]
        return leaving(forward, *args, **kwargs) if len(group) == 1 else forward(*args, **kwargs)

    def leaving(forward, *args, **kwargs):
        output = forward(*args, **kwargs)
        ends["out"] = [part.clone() for part in _parts(output)]
        return output

    with forwards({blocks[group[-1]].module: leaving, blocks[group[0]].module: entering}):
        Blocks(first, 0).evaluate(caller(name), network, signals.append)
    assert torch.equal(signals[0], ends["out"][stream or 0] - ends["in"][stream or 0])


def _parts(output):
    return [output] if torch.is_tensor(output) else list(output)


def test_skipped_blocks_add_to_new_inputs_what_the_patches_of_core_would_add():
    """SD3 with another latent: a first-block cache written with patches_replace, as other packs have it, is the oracle."""
    network = build("SD3")
    kept = Blocks(1, 1).evaluate(caller("SD3"), network, never).kept
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(7))

    def add(args, more):
        return {"img": args["img"] + kept[1], "txt": args["txt"] + kept[0]}

    patches = {"patches_replace": {"dit": {("double_block", 1): add}}}
    expected = caller("SD3", transformer_options=patches, x=x)()
    made = Blocks(1, 1).evaluate(caller("SD3", x=x), network, lambda signal: kept)
    assert torch.equal(made.output, expected)


@pytest.mark.parametrize("name, control", [
    ("Flux", lambda noise: {"input": [noise(1, 16, 32) for _ in range(2)], "output": [noise(1, 16, 32) for _ in range(2)]}),
    ("SD3", lambda noise: {"output": [noise(1, 16, 64) for _ in range(3)]}),
    ("HunyuanVideo", lambda noise: {"input": [noise(1, 32, 32) for _ in range(2)], "output": [noise(1, 32, 32)]}),
])  # fmt: skip
def test_what_a_controlnet_adds_between_blocks_is_not_added_twice(name, control):
    network, generator = build(name), torch.Generator().manual_seed(3)
    call = caller(name, control=control(lambda *shape: torch.randn(shape, generator=generator)))
    plain = call()
    assert not torch.allclose(plain, caller(name)(), rtol=1e-3, atol=1e-4)
    for first, last in ((0, 0), (1, 0), (1, 1)):
        kept = Blocks(first, last).evaluate(call, network, never).kept
        made = Blocks(first, last).evaluate(call, network, lambda signal: kept)  # noqa: B023
        torch.testing.assert_close(made.output, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SKIPPING))
def test_blocks_connected_by_skips_run_only_with_what_they_are_connected_to(name):
    network, call = build(name), caller(name)
    assert not Blocks(0, 1).fits(network) and not Blocks(1, 1).fits(network) and Blocks(2, 1).fits(network)
    kept = Blocks(2, 1).evaluate(call, network, never).kept
    made = Blocks(2, 1).evaluate(call, network, lambda signal: kept)
    torch.testing.assert_close(made.output, call(), rtol=1e-3, atol=1e-4)


def test_a_compiled_network_can_be_cached():
    """As core's TorchCompileModel compiles it, by turns evaluated and skipped."""
    network = build("AuraFlow")
    compiled, expected = torch.compile(network, backend="eager"), caller("AuraFlow")()
    call = caller("AuraFlow", network=compiled)
    for site in (Blocks(1, 0), Parts("mlp")):
        for _ in range(2):
            full = site.evaluate(call, compiled, never)
            made = site.evaluate(call, compiled, lambda signal: full.kept)  # noqa: B023
            assert torch.equal(full.output, expected) and made.skipped
            torch.testing.assert_close(made.output, expected, rtol=1e-3, atol=1e-4)
