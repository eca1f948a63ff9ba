"""Frozen layers: the gradient of their input for the weight as core fetches it, nothing kept, and which of them are trained."""

import json

import comfy.ops
import pytest
import tiny_architectures
import torch
from comfyui_distillery.nodes.host_frozen import (
    frozen,
    kind_of,
    layers_of,
    make_ordinary,
    parts_of,
    smoothed,
    targets_of,
    weight_of,
)

CAST, PLAIN = comfy.ops.manual_cast, comfy.ops.disable_weight_init
LAYERS = {  # a layer, the shape of its input
    "linear": (lambda: PLAIN.Linear(6, 5), (2, 3, 6)),
    "linear, one row": (lambda: PLAIN.Linear(6, 5), (6,)),
    "linear of torch": (lambda: torch.nn.Linear(6, 5), (2, 6)),
    "conv1d": (lambda: PLAIN.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: PLAIN.Conv2d(4, 6, 3, stride=(2, 1), padding=(2, 1), dilation=(1, 2)), (2, 4, 8, 9)),
    "conv2d, groups": (lambda: PLAIN.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
    "conv3d": (lambda: PLAIN.Conv3d(3, 4, (1, 2, 2), stride=(1, 2, 2)), (2, 3, 4, 6, 6)),
}


def filled(layer):
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return layer.requires_grad_(False)


def input_gradient(call, shape, dtype=torch.float32):
    """(output, gradient of x, what autograd kept) of a weighted sum of call(x)."""
    generator, kept = torch.Generator().manual_seed(1), []
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = call(x)
    weight = torch.randn(output.shape, generator=generator).to(dtype)
    return output.detach(), torch.autograd.grad(output, x, weight)[0], kept


def run_frozen(layer):
    return lambda x: frozen(layer, layer.forward, x)


@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS)
def test_the_gradient_is_autograds_and_neither_weight_nor_input_is_kept(make, shape):
    layer = filled(make())
    output, gradient, kept = input_gradient(run_frozen(layer), shape)
    expected_output, expected, _ = input_gradient(layer, shape)
    assert torch.equal(output, expected_output) and not kept
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS)
def test_weights_may_be_inference_tensors(make, shape):
    plain, loaded = filled(make()), filled(make())
    with torch.inference_mode():
        for name, parameter in loaded._parameters.items():
            loaded._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
    with pytest.raises(RuntimeError, match="[Ii]nference"):
        input_gradient(loaded, shape)
    assert torch.equal(input_gradient(run_frozen(loaded), shape)[1], input_gradient(run_frozen(plain), shape)[1])


def test_what_comes_back_may_be_written_over():
    layer = filled(PLAIN.Linear(6, 5))

    def add_in_place(x):
        output = frozen(layer, layer.forward, x)
        output += 1
        return output

    assert torch.equal(input_gradient(add_in_place, (2, 3, 6))[1], input_gradient(run_frozen(layer), (2, 3, 6))[1])


@pytest.mark.parametrize("stored, computed", [
    (torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float8_e4m3fn, torch.float32),
])  # fmt: skip
def test_patches_and_casts_of_core_are_part_of_it(stored, computed):
    """A LoRA of the user's on an offloaded weight is a weight_function, and fp8 is cast: in the backward pass as before it."""
    layer = filled(CAST.Linear(6, 5, dtype=stored))
    layer.weight_function = [lambda weight: weight + 0.5]
    seen = layer.weight.to(computed) + 0.5
    with weight_of(layer, torch.zeros(1, dtype=computed)) as weight:
        assert torch.equal(weight, seen)
    _, gradient, kept = input_gradient(run_frozen(layer), (4, 6), computed)
    _, expected, _ = input_gradient(lambda x: torch.nn.functional.linear(x, seen, layer.bias.to(computed)), (4, 6), computed)
    assert gradient.dtype == computed and not kept
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("full_precision", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_of_a_quantised_layer_it_is_that_of_the_dequantised_weight(full_precision, scaled):
    settings = {"format": "float8_e4m3fn", "full_precision_matrix_mult": full_precision}
    state = {
        "weight": torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn),
        "weight_scale": torch.tensor(0.25),
        "bias": torch.zeros(16),
        "comfy_quant": torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8),
    }
    layer = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(32, 16, device="cpu")
    layer.load_state_dict(dict(state))
    smoothing = torch.linspace(0.5, 2, 32) if scaled else torch.ones(32)
    layer.pre_quant_scale = smoothing if scaled else None
    dequantised = 0.25 * state["weight"].float() * smoothing
    output, gradient, kept = input_gradient(run_frozen(layer), (2, 4, 32))
    expected_output, expected, _ = input_gradient(lambda x: x @ dequantised.T, (2, 4, 32))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
    assert (output - expected_output).norm() < 0.1 * expected_output.norm() and not kept  # its inputs are rounded to fp8 too
    assert torch.equal(smoothed(layer, torch.ones(32)), smoothing)


def test_without_gradients_the_layer_just_runs():
    layer = filled(PLAIN.Linear(6, 5))
    x = torch.randn(2, 6)
    assert not frozen(layer, layer.forward, x).requires_grad
    with torch.no_grad():
        assert torch.equal(frozen(layer, layer.forward, x.requires_grad_()), layer(x))


def test_small_parameters_become_ordinary_and_stay_what_they_are():
    network = torch.nn.Sequential(PLAIN.Linear(4, 4), PLAIN.LayerNorm(4))
    with torch.inference_mode():
        for module in network:
            for name, parameter in module._parameters.items():
                module._parameters[name] = torch.nn.Parameter(torch.randn(parameter.shape), requires_grad=False)
        network[1].register_buffer("table", torch.randn(3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    make_ordinary(network, torch.device("cpu"))
    inference = {name for name, value in network.state_dict().items() if value.is_inference()}
    assert inference == {"0.weight", "0.bias"}  # the big ones stay where they are
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# Which layers


def chosen(name, targets):
    return set(targets_of(tiny_architectures.build(name), targets))


def test_presets_follow_what_layers_do():
    double, single = "double_blocks.0.", "single_blocks.0."
    attention = {path for path in chosen("Flux", "attention") if ".0." in path[:17]}
    streams = {f"{double}{stream}_{part}" for stream in ("img", "txt") for part in ("attn.qkv", "attn.proj")}
    assert attention == streams | {single + "linear1", single + "linear2"}
    blocks = chosen("Flux", "attention and mlp")
    assert {double + "img_mlp.0", double + "txt_mlp.2"} <= blocks
    assert not {double + "img_mod.lin", single + "modulation.lin", "img_in", "final_layer.linear"} & blocks
    assert {double + "img_mod.lin", single + "modulation.lin", "img_in", "final_layer.linear"} <= chosen("Flux", "linear")
    assert not chosen("SD1", "linear") & {"input_blocks.0.0"} and "input_blocks.0.0" in chosen("SD1", "linear and convolutions")


def test_every_layer_is_some_part_of_the_network():
    flux, unet = (parts_of(tiny_architectures.build(name)) for name in ("Flux", "SD1"))
    expected = {
        "attention": ["double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.proj", "single_blocks.0.linear1"],
        "feed-forward": ["double_blocks.0.img_mlp.0", "double_blocks.0.txt_mlp.2"],
        "modulation": ["double_blocks.0.img_mod.lin", "single_blocks.0.modulation.lin"],
        "outside the blocks": ["img_in", "time_in.in_layer", "final_layer.linear", "final_layer.adaLN_modulation.1"],
    }
    assert {part: [path for path in paths if flux[path] == part] for part, paths in expected.items()} == expected
    assert unet["input_blocks.0.0"] == unet["input_blocks.1.0.in_layers.2"] == "convolution" and unet["time_embed.0"] == "outside the blocks"
    assert set(unet.values()) == {"attention", "feed-forward", "outside the blocks", "convolution"}


@pytest.mark.parametrize("name", tiny_architectures.NETWORKS)
def test_presets_grow_and_find_something_in_every_network(name):
    attention, blocks, linear, everything = (
        chosen(name, preset) for preset in ("attention", "attention and mlp", "linear", "linear and convolutions")
    )
    assert attention and attention <= blocks <= linear <= everything
    assert not [path for path in blocks if "adaln" in path.lower() or "modulation" in path]


def test_layers_can_be_named_and_grouped_convolutions_are_passed_over():
    assert chosen("Flux", ["double_blocks.*.img_attn.*"]) == {
        f"double_blocks.{i}.img_attn.{part}" for i in range(2) for part in ("qkv", "proj")
    }  # fmt: skip
    network = torch.nn.ModuleDict({"a": torch.nn.Conv2d(4, 4, 3, groups=2), "b": torch.nn.Conv2d(4, 4, 3)})
    assert list(layers_of(network)) == ["a", "b"] and list(targets_of(network, ["*"])) == ["b"]
    quantised = comfy.ops.mixed_precision_ops()
    assert kind_of(quantised.Linear(4, 4)) == "linear" and kind_of(quantised.MoEExperts(2, 4, 4)) is None
    assert kind_of(torch.nn.LayerNorm(3)) is None and kind_of(torch.nn.ConvTranspose2d(2, 2, 2)) is None


@pytest.mark.parametrize("targets, message", [
    ("attn", "'attn': it must be one of attention, "), (["nothing.*"], "no such layer. It has, for example, img_in"), ([], "no such"),
])  # fmt: skip
def test_targets_that_match_nothing_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        chosen("Flux", targets)
