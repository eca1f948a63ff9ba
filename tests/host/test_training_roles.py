"""Roles on one loaded MODEL: each its own LoRA and nobody else's, the base as it was, whatever happens on the way."""

import comfy.model_management
import comfy_kitchen
import pytest
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP
from comfyui_distillery.nodes.host_lora import as_patches
from comfyui_distillery.nodes.host_training import Part, training
from training_cases import (
    assert_untouched,
    batch_for,
    built,
    conditions,
    denoised_by_core,
    digest,
    inference_tensors,
    lora_for,
)

MODELS = ["flow", "eps", "video", "sdxl", "v", "edm"]


def loras_for(model, *roles):
    return {role: lora_for(model, seed) for seed, role in enumerate(roles)}


def gradients(lora):
    return [parameter.grad for parameter in lora.parameters()]


def close(a, b, tolerance=1e-5):
    return (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("name", MODELS)
def test_the_teacher_is_the_model_and_each_item_has_its_own_caption(name):
    model, shape = built(name)
    x, sigma, prompts = batch_for(shape, tokens=(8, 8, 8))
    expected = denoised_by_core(model, x, sigma, prompts)
    assert not close(expected[:1], denoised_by_core(model, x[:1], sigma[:1], prompts[1:2]), 1e-3)  # captions matter
    with training(model, loras_for(model, "student")) as roles:
        made = roles("teacher", x, sigma, conditions(prompts))
        assert close(made, expected)
        assert close(roles.guided(x, sigma, conditions(prompts), conditions(prompts[::-1]), 3.0)[1], expected[1])


@pytest.mark.parametrize("name", ["flow", "eps", "video"])
@pytest.mark.parametrize("tokens", [(4, 8, 4), (8, 6, 7)])
def test_captions_of_other_lengths_are_treated_as_core_treats_them(name, tokens):
    model, shape = built(name)
    x, sigma, prompts = batch_for(shape, tokens)
    expected = denoised_by_core(model, x, sigma, prompts)
    with training(model, {}) as roles:
        assert close(roles("teacher", x, sigma, conditions(prompts)), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_role_is_the_model_with_its_lora_merged_in_at_that_strength(name, strength):
    model, shape = built(name)
    x, sigma, prompts = batch_for(shape)
    loras = loras_for(model, "student", "fake")
    expected = denoised_by_core(as_patches(loras["fake"], model, strength), x, sigma, prompts)
    teacher = denoised_by_core(model, x, sigma, prompts)
    with training(model, loras) as roles:
        made = roles("fake", x, sigma, conditions(prompts), strength)
        assert close(made, expected) and not close(made, teacher, 1e-3)
        assert close(roles("fake", x, sigma, conditions(prompts), 0.0), teacher)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_roles_own_lora_and_x_and_nothing_else(checkpointing):
    model, shape = built("flow")
    x, sigma, prompts = batch_for(shape)
    loras = loras_for(model, "student", "fake", "ema")
    with training(model, loras, checkpointing, x.shape) as roles:
        roles("student", x, sigma, conditions(prompts)).sum().backward()
        assert all(gradient is not None and gradient.any() for gradient in gradients(loras["student"]))
        assert gradients(loras["fake"]) == gradients(loras["ema"]) == [None] * len(gradients(loras["fake"]))
        x.requires_grad_()
        roles("teacher", x, sigma, conditions(prompts)).sum().backward()
        assert x.grad.any() and gradients(loras["fake"]) == [None] * len(gradients(loras["fake"]))


def test_what_is_run_again_plays_the_role_and_strength_it_had():
    model, shape = built("flow")
    x, sigma, prompts = batch_for(shape)
    found = []
    for checkpointing in (False, True):
        loras = loras_for(model, "student", "fake")
        with training(model, loras, checkpointing) as roles:
            loss = roles("student", x, sigma, conditions(prompts), 0.5).pow(2).mean()
            loss = loss + roles("fake", x, sigma, conditions(prompts)).pow(2).mean()
            roles("teacher", x, sigma, conditions(prompts))
            with roles.stage.playing(Part(dict(loras["fake"].items()), 2.0)):
                loss.backward()
        found.append([*gradients(loras["student"]), *gradients(loras["fake"])])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-6, atol=1e-9)


def test_the_users_own_loras_are_part_of_every_role():
    model, shape = built("flow")
    x, sigma, prompts = batch_for(shape)
    mine, student, plain = lora_for(model, 7), lora_for(model, 8), digest(model)
    base = as_patches(mine, model, 0.8)
    expected = denoised_by_core(as_patches(student, base), x, sigma, prompts)
    with training(base, {"student": student}) as roles:
        assert close(roles("teacher", x, sigma, conditions(prompts)), denoised_by_core(base, x, sigma, prompts))
        assert close(roles("student", x, sigma, conditions(prompts)), expected)
    base.unpatch_model()
    assert_untouched(model, plain)


@pytest.mark.parametrize("name", ["flow", "eps"])
def test_core_samples_a_role_and_what_it_loads_meanwhile_does_no_harm(name):
    model, shape = built(name)
    x, sigma, prompts = batch_for(shape)
    loras = loras_for(model, "student", "fake")
    patched = as_patches(loras["fake"], model)
    expected = denoised_by_core(patched, x, sigma, prompts)
    with training(model, loras) as roles:
        before = {role: roles(role, x, sigma, conditions(prompts)) for role in ("teacher", "student")}
        with roles.playing("student"):
            assert close(denoised_by_core(model, x, sigma, prompts), before["student"])
        assert close(denoised_by_core(patched, x, sigma, prompts), expected)  # patches the shared weights in place
        for role, denoised in before.items():
            assert torch.equal(roles(role, x, sigma, conditions(prompts)), denoised)
        roles("student", x, sigma, conditions(prompts)).sum().backward()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["flow", "eps", "video"])
def test_models_as_loaders_give_them_train_within_a_node(name, checkpointing):
    """Weights and prompts are inference tensors there, and gradients are off."""
    model, shape = built(name)
    lora = {True: lora_for(model), False: lora_for(model)}
    for as_loaded in (False, True):
        with torch.inference_mode(as_loaded):
            if as_loaded:
                inference_tensors(model)
            before = digest(model)
            x, sigma, prompts = batch_for(shape)
            cond = conditions(prompts)
            with training(model, {"student": lora[as_loaded]}, checkpointing) as roles:
                roles("student", x.clone(), sigma.clone(), cond).sum().backward()
            assert_untouched(model, before)
    for plain, loaded in zip(gradients(lora[False]), gradients(lora[True]), strict=True):
        torch.testing.assert_close(loaded, plain, rtol=1e-6, atol=1e-9)


def test_adapters_may_be_of_another_dtype_than_the_model():
    model, shape = built("flow")
    x, sigma, prompts = batch_for(shape)
    exact, coarse = lora_for(model), lora_for(model).bfloat16()
    for lora in (exact, coarse):
        with training(model, {"student": lora}) as roles:
            roles("student", x, sigma, conditions(prompts)).sum().backward()
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients(coarse))
    assert all(close(a.float(), b, 0.1) for a, b in zip(gradients(coarse), gradients(exact)))


@pytest.mark.parametrize("where, checkpointing", [
    ("before", True), ("forward", False), ("forward", True), ("backward", True),  # in the backward pass: where blocks run again
])  # fmt: skip
def test_an_interruption_leaves_nothing_behind(where, checkpointing):
    model, shape = built("flow")
    before, kernel = digest(model), comfy_kitchen.rms_rope
    x, sigma, prompts = batch_for(shape)
    block = model.model.diffusion_model.single_blocks[0].linear1

    def interrupt(*_):
        comfy.model_management.interrupt_current_processing()

    hook = block.register_forward_pre_hook(interrupt) if where == "forward" else None
    stopped = pytest.raises(comfy.model_management.InterruptProcessingException)
    with stopped, training(model, loras_for(model, "student"), checkpointing) as roles:
        if where == "before":
            interrupt()
        made = roles("student", x, sigma, conditions(prompts))
        made.register_hook(interrupt)
        made.sum().backward()
    if hook:
        hook.remove()
    assert_untouched(model, before)
    assert comfy_kitchen.rms_rope is kernel
    assert torch.equal(denoised_by_core(model, x, sigma, prompts), denoised_by_core(built("flow")[0], x, sigma, prompts))


def test_an_exception_leaves_nothing_behind():
    model, _ = built("flow")
    before = digest(model)
    with pytest.raises(KeyError, match="anything"), training(model, loras_for(model, "student")):
        raise KeyError("anything")
    assert_untouched(model, before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_the_inputs_are_not_written_over():
    model, shape = built("flow")
    x, sigma, prompts = batch_for(shape)
    given = x.clone(), sigma.clone()
    with training(model, loras_for(model, "student")) as roles:
        roles("student", x, sigma, conditions(prompts)).sum().backward()
    assert torch.equal(x, given[0]) and torch.equal(sigma, given[1])


def wrapped(model):
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "other", lambda executor, *args, **kwargs: executor(*args, **kwargs))


def forward_replaced(model):
    block = model.model.diffusion_model.single_blocks[0]
    block.forward = block.forward


def seamless(model):
    model.model.diffusion_model.input_blocks[0][0].padding_mode = "circular"


@pytest.mark.parametrize("name, change, message", [
    ("flow", wrapped, "a wrapper around its network, from .*test_training_roles"),
    ("flow", lambda model: model.set_model_unet_function_wrapper(lambda apply, given: None), "model_function_wrapper"),
    ("flow", lambda model: model.add_object_patch("diffusion_model.img_in.forward", None), "diffusion_model.img_in.forward"),
    ("flow", lambda model: model.set_injections("bypass_lora", [PatcherInjection(lambda m: None, lambda m: None)]), "bypass_lora"),
    ("flow", forward_replaced, "another forward on single_blocks.0"),
    ("eps", seamless, "circular"),
])  # fmt: skip
def test_a_model_that_carries_what_training_cannot_honour_is_refused(name, change, message):
    model, _ = built(name)
    loras = loras_for(model, "student")
    change(model)
    with pytest.raises(ValueError, match=message), training(model, loras):
        pass
    assert comfy.model_management.in_training is False


def test_a_model_that_is_trained_already_is_refused():
    model, _ = built("flow")
    with training(model, {}), pytest.raises(ValueError, match="being trained already"), training(model.clone(), {}):
        pass


def test_bad_calls_are_named():
    model, shape = built("flow")
    x, sigma, prompts = batch_for(shape)
    with training(model, loras_for(model, "student")) as roles:
        with pytest.raises(ValueError, match="'fake': this run has teacher, student"):
            roles("fake", x, sigma, conditions(prompts))
        with pytest.raises(ValueError, match="x has 2 items, sigma 2 and cond 1"):
            roles("student", x, sigma, conditions(prompts[:1]))
    other = lora_for(built("eps")[0])
    with pytest.raises(ValueError, match="made for another model"), training(model, {"student": other}):
        pass
