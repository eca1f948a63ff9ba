"""Adapters against the layers of torch with the increment merged in, and what is saved of a set of them."""

import pytest
import torch
from comfyui_distillery.distill.lora import Adapter, LoraSet, adapter_for

LAYERS = {
    "linear": (torch.nn.Linear(6, 5), (3, 7, 6)),
    "conv1d": (torch.nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (torch.nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=(2, 1)), (2, 4, 8, 9)),
    "conv2d, 1x1": (torch.nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    "conv3d": (torch.nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)), (2, 3, 4, 6, 6)),
}


def filled(layer, rank=2, alpha=3.0):
    generator = torch.Generator().manual_seed(0)
    adapter = adapter_for(layer, rank, alpha, generator)
    adapter.up.data.normal_(generator=generator)
    return adapter


def lora():
    return LoraSet({"blocks.0.attn": filled(LAYERS["linear"][0]), "conv_in": filled(LAYERS["conv2d"][0], rank=3)})


@pytest.mark.parametrize("layer, shape", LAYERS.values(), ids=LAYERS)
def test_an_adapter_adds_what_its_weight_would(layer, shape):
    x, adapter = torch.randn(shape, generator=torch.Generator().manual_seed(1)), filled(layer)
    merged = {"weight": layer.weight + adapter.weight(), "bias": layer.bias}
    torch.testing.assert_close(layer(x) + adapter(x), torch.func.functional_call(layer, merged, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer, shape", LAYERS.values(), ids=LAYERS)
def test_a_new_adapter_changes_nothing_and_can_learn(layer, shape):
    x, adapter = torch.randn(shape), adapter_for(layer, 2, generator=torch.Generator().manual_seed(0))
    added = adapter(x)
    assert not added.any() and adapter.scale == 1
    added.pow(2).sum().backward()
    bound = layer.weight[0].numel() ** -0.5  # of torch's own linear layers
    assert 0.7 * bound < adapter.down.abs().max() <= bound
    (adapter(x) * torch.randn_like(added)).sum().backward()
    assert adapter.up.grad.any()


def test_alpha_scales_the_increment_and_a_rank_is_never_above_the_layers():
    layer = LAYERS["linear"][0]
    assert torch.allclose(filled(layer, alpha=6.0).weight(), 2 * filled(layer, alpha=3.0).weight())
    assert adapter_for(layer, 100).rank == 5


def test_the_draw_is_the_generators_and_parameters_may_be_of_another_dtype():
    layer = LAYERS["linear"][0]
    a, b = (adapter_for(layer, 2, generator=torch.Generator().manual_seed(3), dtype=dtype) for dtype in (None, torch.bfloat16))
    assert torch.equal(a.down.bfloat16(), b.down)
    b.up.data.fill_(0.5)
    x = torch.randn(3, 6)
    assert b(x).dtype == torch.float32
    torch.testing.assert_close(b(x.bfloat16(), torch.float32).float(), b(x), rtol=2e-2, atol=2e-2)


def test_a_set_keeps_its_paths_and_comes_back_from_its_state():
    before = lora()
    state = before.state()
    assert list(state)[:3] == [f"blocks.0.attn.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")]
    after = LoraSet.from_state(state)
    assert after.paths == before.paths and after["conv_in"].alpha == 3
    assert all(torch.equal(after[path].weight(), adapter.weight()) for path, adapter in before.items())
    state["conv_in.lora_up.weight"].zero_()
    assert before["conv_in"].up.any() and after["conv_in"].up.any()  # each has tensors of its own


def test_a_set_without_alpha_has_scale_one():
    state = lora().state()
    del state["conv_in.alpha"]
    assert LoraSet.from_state(state)["conv_in"].scale == 1


def test_loading_changes_values_in_place():
    target, source = LoraSet({path: adapter_for(layer, 2) for path, (layer, _) in LAYERS.items()}), None
    parameters = list(target.parameters())
    source = LoraSet({path: filled(layer) for path, (layer, _) in LAYERS.items()})
    target.load(source.state())
    assert all(a is b for a, b in zip(parameters, target.parameters(), strict=True))
    assert all(torch.equal(target[path].weight(), source[path].weight()) for path in source.paths)


def test_fitting_takes_over_where_a_convolution_reads():
    layer, shape = LAYERS["conv2d"]
    state = {"conv_in." + end: tensor for end, tensor in (
        ("lora_down.weight", filled(layer).down.detach()), ("lora_up.weight", filled(layer).up.detach()),
    )}  # fmt: skip
    alone = LoraSet.from_state(state)
    alone.fit({"conv_in": layer})
    assert alone["conv_in"](torch.randn(shape)).shape == layer(torch.randn(shape)).shape


@pytest.mark.parametrize("call, message", [
    (lambda: LoraSet.from_state({"a.lora_down.weight": torch.zeros(2, 3)}), "incomplete"),
    (lambda: LoraSet.from_state({"a.diff_b": torch.zeros(2)}), "'a.diff_b'"),
    (lambda: Adapter(torch.zeros(2, 3), torch.zeros(4, 3), 1), "same rank"),
    (lambda: Adapter(torch.zeros(2, 3, 3), torch.zeros(4, 2, 3), 1), "same rank"),
    (lambda: Adapter(torch.zeros(2), torch.zeros(2), 1), "linear layer"),
    (lambda: lora().fit({"conv_in": LAYERS["conv2d"][0]}), "blocks.0.attn, which this model does not have"),
    (lambda: lora().fit({"blocks.0.attn": torch.nn.Linear(6, 4)}), r"\(5, 6\).*\(4, 6\)"),
    (lambda: lora().load(LoraSet({"conv_in": filled(LAYERS["conv2d"][0])}).state()), "cannot be continued"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
