"""Guidance on a model whose latents are packed into one: LTXV with audio."""

import comfy.nested_tensor
import comfy.samplers
import comfy.supported_models
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from tiny_video_networks import LTXAV

SHAPES = ((8, 2, 4, 4), (8, 6, 16))  # video (C, F, H, W) and audio (C, F, bins) of one item
STEPS = 4
DROPS = {"threshold": 1.01, "min_guided": 1, "max_guided": 2, "recheck": 0, "instead": "nothing"}


@pytest.fixture(scope="module")
def model():
    return tiny.build_from(comfy.supported_models.LTXAV, LTXAV)


def prompt(seed):
    return [[torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(seed)), {}]]


def sample(model, seeds=(1, 2), cfg=4.0, sigmas=None):
    """The two latents that come out."""
    noise = comfy.nested_tensor.NestedTensor([tiny.noise_for(shape, seeds) for shape in SHAPES])
    latent = comfy.nested_tensor.NestedTensor([torch.zeros(len(seeds), *shape) for shape in SHAPES])
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(1), prompt(2))
    guider.set_cfg(cfg)
    with torch.inference_mode():
        sigmas = tiny.schedule(model, STEPS) if sigmas is None else sigmas
        return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=5).unbind()


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("rule", [*SKIPS, *RULES])
def test_neutral_is_core_bit_for_bit(nodes, model, rule):
    neutral = {**SKIPS, **RULES}[rule].neutral
    assert_same(sample(tiny.guided(nodes, model, rule, **neutral)), sample(model))


@pytest.mark.parametrize("rule", [*SKIPS, *RULES])
def test_each_rule_runs_repeats_itself_and_keeps_items_apart(nodes, model, rule):
    patched = tiny.guided(nodes, model, rule)
    result = sample(patched)
    assert_same(sample(patched), result)
    for part, alone in zip(result, sample(patched, (2,))):
        torch.testing.assert_close(part[1:], alone, rtol=1e-3, atol=1e-3)


def test_dropped_steps_are_core_cfg_override(nodes, model):
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS)
    assert_same(sample(patched), sample(tiny.unguided_from(nodes, model, tiny.schedule(model, STEPS), 2)))
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "uncond": 2}


def test_a_rule_about_statistics_sees_each_latent_by_itself(nodes, model):
    """Rescale of the denoised latents at phi 1, in one step that ends on them: the spread of the conditional video, and of its audio."""
    sigmas = torch.tensor([0.9, 0.0])
    rescaled = sample(tiny.guided(nodes, model, "rescale", phi=1.0, on="denoised"), sigmas=sigmas)
    guided, alone = sample(model, sigmas=sigmas), sample(model, cfg=1.0, sigmas=sigmas)
    for part, plain, cond in zip(rescaled, guided, alone, strict=True):
        wanted = cond.flatten(1).std(1)
        torch.testing.assert_close(part.flatten(1).std(1), wanted, rtol=1e-3, atol=1e-4)
        assert (plain.flatten(1).std(1) - wanted).abs().min() > 1e-3
