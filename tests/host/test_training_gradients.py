"""Gradients of every network of ComfyUI on its frozen weights, against autograd on an unfrozen copy with the LoRA merged in."""

import copy

import pytest
import torch
from comfyui_distillery.distill.lora import LoraSet
from comfyui_distillery.nodes.host_frozen import targets_of
from comfyui_distillery.nodes.host_training import Part, Stage, differentiable
from tiny_architectures import NETWORKS, build

STRENGTH = 0.7
TARGETS = ["*"]  # every layer that can have an adapter


@pytest.fixture(autouse=True)
def no_kernels_without_a_backward_pass():
    with differentiable():
        yield


def lora_for(network, targets=TARGETS, seed=0):
    """Of rank 2, with noise in both factors."""
    generator = torch.Generator().manual_seed(seed)
    lora = LoraSet.create(targets_of(network, targets), rank=2, generator=generator)
    for adapter in lora.adapters:
        adapter.up.data.normal_(std=0.3, generator=generator)
    return lora


def outcome(name, call, lora):
    """(outputs, gradients by x and by each tensor of the LoRA) of a weighted sum of what call(x, timestep, ...) returns."""
    generator = torch.Generator().manual_seed(1)
    given = NETWORKS[name][2](lambda *shape: torch.randn(shape, generator=generator))
    given = {"transformer_options": {}, "control": None, **given}
    x = given.pop("x")
    parts = [part.requires_grad_() for part in (x if isinstance(x, list) else [x])]
    made = call(x, torch.full((len(parts[0]),), 0.7), **given)
    made = [made] if torch.is_tensor(made) else list(made)
    loss = sum((output * torch.randn(output.shape, generator=generator)).sum() for output in made)
    wanted = [*parts, *lora.parameters()]
    return made, torch.autograd.grad(loss, wanted, allow_unused=True)


def by_merging(name, network, lora):
    """The oracle. What autograd keeps is copied at once: some blocks write over it."""
    weights = {f"{path}.weight": network.get_submodule(path).weight for path in lora.paths}

    def call(*args, **kwargs):
        merged = {key: weights[key] + STRENGTH * lora[key.removesuffix(".weight")].weight() for key in weights}
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            return torch.func.functional_call(network, merged, args, kwargs)

    return outcome(name, call, lora)


def by_roles(name, network, lora, checkpointing):
    stage = Stage(network, checkpointing)
    with stage.installed(), stage.playing(Part(dict(lora.items()), STRENGTH)):
        return outcome(name, network, lora)


def assert_same(made, expected):
    """To 1e-5 of their common norm, and none off by more than rounding in a softmax that is nearly 0 or 1 explains."""
    assert [tensor is None for tensor in made] == [tensor is None for tensor in expected]
    pairs = [(a.detach(), b.detach()) for a, b in zip(made, expected) if a is not None]
    errors, norms = torch.stack([torch.stack([(a - b).norm(), b.norm()]) for a, b in pairs]).T
    assert norms.max() > 0
    assert errors.norm() < 1e-5 * norms.norm()
    assert (errors < 5e-5 * (norms + 0.1 * norms.max())).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_autograd_on_an_unfrozen_copy(name):
    network = build(name)
    lora = lora_for(network)
    expected, expected_gradients = by_merging(name, copy.deepcopy(network), lora)
    for checkpointing in (False, True):
        made, gradients = by_roles(name, network, lora, checkpointing)
        assert_same(made, expected)
        assert_same(gradients, expected_gradients)
