"""The bank of conditions: one per item, told apart, refused where training cannot honour them."""

import pytest
import tiny
import torch
from comfyui_distillery.nodes.host_conditions import Conditions, Encoder
from comfyui_distillery.nodes.host_training import training
from training_cases import ARCHITECTURES, batch_for, built, denoised_by_core, prompt


def bank(count=4, role="positive"):
    return Conditions.of([prompt(1 + i) for i in range(count)], role)


def sizes(conditions):
    """What the prompts of training_cases tell apart."""
    return [item.entry["width"] // 64 for item in conditions.items]


@pytest.mark.parametrize("indices, expected", [
    ([2, 0, 2], [3, 1, 3]), (torch.tensor([1, 3]), [2, 4]), (slice(1, 3), [2, 3]), ((-1,), [4]),
])  # fmt: skip
def test_items_are_picked_by_number(indices, expected):
    assert sizes(bank()[indices]) == expected and len(bank()[indices]) == len(expected)


def test_each_part_of_a_conditioning_is_an_item_and_banks_can_be_joined():
    assert sizes(Conditions.of([prompt(3) + prompt(1), prompt(2)])) == [3, 1, 2]
    assert sizes(bank(2) + bank(1)) == [1, 2, 1]


def test_dropped_items_become_the_negative():
    negative = Conditions.of([prompt(9)] * 3, "negative")
    dropped = bank(3).dropped(torch.tensor([False, True, False]), negative)
    assert sizes(dropped) == [1, 9, 3] and [item.role for item in dropped.items] == ["positive", "negative", "positive"]
    with pytest.raises(ValueError):
        bank(2).dropped([True, False], negative)


def test_what_a_model_is_given_is_ordinary_even_of_inputs_of_a_node():
    model, shape = built("sdxl")
    with torch.inference_mode():
        conditions = bank(2)
    ((_, given),) = Encoder(model.model).batches(conditions, shape, torch.device("cpu"))
    assert conditions.items[0].entry["cross_attn"].is_inference()
    assert not given["c_crossattn"].is_inference() and not given["y"].is_inference()


def test_batches_are_as_few_as_core_would_make():
    model, shape = built("flow")  # Flux pads nothing: prompts of one length to a batch
    conditions = Conditions.of([prompt(1, 8), prompt(2, 4), prompt(3, 8)])
    batches = Encoder(model.model).batches(conditions, shape, torch.device("cpu"))
    assert [items for items, _ in batches] == [[0, 2], [1]]
    assert [given["guidance"].tolist() for _, given in batches if "guidance" in given] in ([], [[1.0, 3.0], [2.0]])
    assert torch.equal(batches[0][1]["c_crossattn"], torch.cat([prompt(1, 8)[0][0], prompt(3, 8)[0][0]]))


def test_sdxl_gets_each_items_pooled_prompt_and_sizes():
    model, shape = built("sdxl")
    ((_, given),) = Encoder(model.model).batches(bank(3), shape, torch.device("cpu"))
    assert torch.equal(given["y"][:, :64], torch.cat([prompt(seed)[0][1]["pooled_output"] for seed in (1, 2, 3)]))
    assert len(given["y"][:, 64:].unique(dim=0)) == 3


def test_a_condition_is_encoded_once_for_each_shape():
    model, shape = built("eps")
    encoder, conditions, calls = Encoder(model.model), bank(2), []
    extra_conds = model.model.extra_conds
    model.model.extra_conds = lambda **given: calls.append(given["noise"].shape) or extra_conds(**given)
    for wanted in (shape, shape, (4, 8, 12)):
        encoder.batches(conditions[[0, 1, 0]], wanted, torch.device("cpu"))
    assert calls == [(1, *shape)] * 2 + [(1, 4, 8, 12)] * 2


@pytest.mark.parametrize("key, value, message", [
    ("control", object(), "a ControlNet"), ("area", (8, 8, 0, 0), "an area"), ("mask", torch.ones(1, 8, 8), "a mask"),
    ("start_percent", 0.2, "a range of steps"), ("hooks", object(), "hooks"), ("gligen", object(), "GLIGEN"),
])  # fmt: skip
def test_what_training_cannot_honour_is_refused(key, value, message):
    (tensor, extra), = prompt(1)
    with pytest.raises(ValueError, match=f"conditioning carries {message}"):
        Conditions.of([[[tensor, {**extra, key: value}]]])


def test_an_empty_bank_is_refused():
    with pytest.raises(ValueError, match="conditioning is empty"):
        Conditions.of([])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tokens", [(5, 5), (4, 6)])
def test_each_item_of_a_batch_is_what_core_makes_of_it_alone(name, tokens):
    """Masks, counts of tokens and text adapters differ by network: whatever it is, captions of a batch are never mixed."""
    kind, network, shape, width = ARCHITECTURES[name]
    model = tiny.build_from(kind, network)
    x, sigma, _ = batch_for(shape, tokens)
    masks = [torch.ones(1, count, dtype=torch.long) for count in tokens]
    masks[0][:, -1] = 0
    prompts = [prompt(1 + i, tokens[i], width, 32, attention_mask=masks[i]) for i in range(2)]
    expected = denoised_by_core(model, x, sigma, prompts)
    with training(model, {}) as roles:
        made = roles("teacher", x, sigma, Conditions.of(prompts))
    assert (made - expected).norm() < 1e-5 * expected.norm()
