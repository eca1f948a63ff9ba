"""The layers of UNets, against full runs in which core's own patches put in what each layer has added."""

import copy
from functools import partial

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel, forward_timestep_embed
from comfyui_distillery.nodes.host_sites_layers import LEVELS, PLACES, Layers
from test_cache_sites import UNETS, caller, inputs_of, never
from test_cache_sites_unet import control_for, drawn
from tiny_architectures import NETWORKS, build

close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)


def at(name, seed, time, network=None, patches=None, control=None):
    """call() on another latent and another prompt, at another time."""
    network, noise = build(name) if network is None else network, drawn(seed)
    given = inputs_of(name, 1)
    given |= {"x": noise(*given["x"].shape), "context": noise(*given["context"].shape)}

    def call():
        fresh = None if control is None else {key: list(tensors) for key, tensors in control.items()}
        x, times = given["x"], torch.full((len(given["x"]),), time)
        more = {key: value for key, value in given.items() if key not in ("x", "transformer_options")}
        with torch.inference_mode():
            return network(x, times, control=fresh, transformer_options={"patches": dict(patches or {})}, **more)

    return call


def skip_of(layer, x):
    return layer.skip_connection(layer.x_upd(x)) if isinstance(layer, ResBlock) else x


def noting(level, added):
    """Core's patch that runs each layer as core does and notes what it has added."""

    def handler(layer, x, emb, context, options, *rest):
        output = forward_timestep_embed([layer], x, emb, context, {**options, "patches": {}}, *rest)
        added[layer] = output - skip_of(layer, x)
        return output

    return {"forward_timestep_embed_patch": [(kind, handler) for kind in LEVELS[level]]}


def putting_in(level, added):
    return {
        "forward_timestep_embed_patch": [
            (kind, lambda layer, x, *_: skip_of(layer, x) + added[layer]) for kind in LEVELS[level]
        ]
    }


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(UNETS))
def test_a_skip_is_a_full_run_with_what_each_layer_added_put_in(name, level):
    """On another latent, with another prompt, at another time: all that is no such layer is new. A block's sum is its layers'."""
    network, site, added = build(name), Layers(level), {}
    kept = site.evaluate(at(name, 2, 0.7), network, never).kept
    at(name, 2, 0.7, patches=noting(level, added))()
    for chain, tensor in zip(site.chains(network), kept, strict=True):
        if len(chain) == 1:
            close(tensor, added[chain[0]])
    control = control_for(network, name, 4)()
    expected = at(name, 3, 0.2, patches=putting_in(level, added), control=control)()
    made = site.evaluate(at(name, 3, 0.2, control=control), network, lambda signal: kept)
    close(made.output, expected)
    assert not torch.allclose(expected, at(name, 2, 0.7)(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(UNETS))
def test_layers_that_always_add_the_same_are_skipped_without_an_error(name, level):
    network, site = copy.deepcopy(build(name)), Layers(level)
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.out_layers[-1].weight.zero_()
        elif isinstance(module, SpatialTransformer):
            module.proj_out.weight.zero_()
    kept = site.evaluate(at(name, 2, 0.7, network), network, never).kept
    assert all(tensor.abs().max() > 0.1 for tensor in kept)
    expected = at(name, 3, 0.2, network)()
    close(site.evaluate(at(name, 3, 0.2, network), network, lambda signal: kept).output, expected)
    assert not torch.allclose(expected, at(name, 2, 0.7, network)(), rtol=1e-2, atol=1e-2)


def test_the_encoders_layers_and_the_decoders_are_all():
    for level in LEVELS:
        chains = {where: Layers(level, where).chains(build("SD1")) for where in PLACES}
        assert chains["encoder"] + chains["decoder"] == chains["all"] and all(chains.values())
    left_out = [Layers(level).evaluate(caller("SD1"), build("SD1"), never).done for level in LEVELS]
    assert left_out == [7, 8, 7]  # two input blocks, the middle with two ResBlocks, and four output blocks


@pytest.mark.parametrize("level", LEVELS)
def test_other_packs_patches_may_write_over_what_they_get(level):
    network, site = build("SD1"), Layers(level)

    def freeu(h, hsp, options):
        h[:, : h.shape[1] // 2] *= 1.3
        hsp *= 0.9
        return h, hsp

    def doubling(h, options):
        return h.mul_(2)

    patches = {"output_block_patch": [freeu], "input_block_patch": [doubling], "input_block_patch_after_skip": [doubling]}
    call = caller("SD1", transformer_options={"patches": patches})
    plain, full = call(), site.evaluate(call, network, never)
    assert torch.equal(full.output, plain)
    copies = [tensor.clone() for tensor in full.kept]
    for _ in range(2):
        close(site.evaluate(call, network, lambda signal: full.kept).output, plain)
    assert all(map(torch.equal, full.kept, copies))


@pytest.mark.parametrize("level", LEVELS)
def test_a_layer_of_another_pack_between_them_runs_at_every_step(level):
    """As AnimateDiff's motion modules do: it is not counted among what is kept."""

    class Louder(torch.nn.Module):
        def forward(self, x):
            return 3 * x

    network, site = copy.deepcopy(build("SD1")), Layers(level)
    for block in [network.input_blocks[1], network.middle_block, *network.output_blocks]:
        block.insert(1, Louder())
    plain = caller("SD1", network=network)()
    full = site.evaluate(caller("SD1", network=network), network, never)
    assert torch.equal(full.output, plain) and not torch.equal(plain, caller("SD1")())
    close(site.evaluate(caller("SD1", network=network), network, lambda signal: full.kept).output, plain)


def test_where_another_pack_runs_no_layer_there_is_nothing_to_learn():
    patches = {"forward_timestep_embed_patch": [(ResBlock, lambda layer, x, *_: skip_of(layer, x))]}
    made = Layers("resblocks").evaluate(caller("SD1", transformer_options={"patches": patches}), build("SD1"), never)
    assert (made.kept, made.skipped) == (None, False)


def test_resblocks_that_resize():
    """A chain that begins at one resolution and ends at another."""
    given = {"device": torch.device("cpu"), "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    network = UNetModel(**NETWORKS["SD1"][1], resblock_updown=True, **given).requires_grad_(False).eval()
    noise = drawn(0)
    for tensor in network.state_dict().values():
        tensor.copy_(noise(*tensor.shape) / (tensor[0].numel() if tensor.ndim > 1 else 1) ** 0.5)
    plain = at("SD1", 2, 0.7, network)()
    for level in LEVELS:
        site = Layers(level)
        assert any(layer.updown for chain in site.chains(network) for layer in chain if isinstance(layer, ResBlock)) == (
            level != "transformers"
        )
        full = site.evaluate(at("SD1", 2, 0.7, network), network, never)
        assert torch.equal(full.output, plain)
        close(site.evaluate(at("SD1", 2, 0.7, network), network, lambda signal: full.kept).output, plain)  # noqa: B023


def test_a_unet_without_a_middle_block_can_be_cached():
    network = copy.deepcopy(build("SDXL"))
    network.middle_block = None
    plain = caller("SDXL", network=network)()
    for level in LEVELS:
        full = Layers(level).evaluate(caller("SDXL", network=network), network, never)
        made = Layers(level).evaluate(caller("SDXL", network=network), network, lambda signal: full.kept)  # noqa: B023
        close(made.output, plain)
