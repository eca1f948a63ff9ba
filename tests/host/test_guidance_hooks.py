"""Guidance rules through the real CFGGuider and ModelPatcher, on eps, flow and video models."""

import functools

import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance import RULES


@pytest.mark.parametrize("rule", RULES)
def test_neutral_guidance_is_core_bit_for_bit(nodes, built, rule):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched = tiny.guided(nodes, model, rule, **RULES[rule].neutral)
    assert torch.equal(tiny.sample(patched, noise), tiny.sample(model, noise))


@pytest.mark.parametrize("rule", RULES)
def test_guidance_repeats_itself_and_leaves_cfg_1_and_the_input_model_alone(nodes, built, rule):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    before = tiny.sample(model, noise)
    patched = tiny.guided(nodes, model, rule)
    assert torch.equal(tiny.sample(patched, noise, cfg=1.0), tiny.sample(model, noise, cfg=1.0))
    changed = tiny.sample(patched, noise)
    assert not torch.equal(changed, before)
    assert torch.equal(tiny.sample(patched, noise), changed)
    assert torch.equal(tiny.sample(model, noise), before)


def test_one_step_of_guidance_is_the_published_formula(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.sigma_max) * 0.9, 0.0])
    into = model.model.process_latent_in

    def denoised(positive):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(tiny.prompt(positive), tiny.prompt(2))
        guider.set_cfg(1.0)
        with torch.inference_mode():
            sampler = comfy.samplers.sampler_object("euler")
            return into(guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)).double()

    cond, uncond = denoised(1), denoised(2)
    difference = (cond - uncond).flatten(1)
    difference = difference * (1.5 / difference.norm(dim=1, keepdim=True)).clamp(max=1)
    unit = cond.flatten(1) / cond.flatten(1).norm(dim=1, keepdim=True)
    parallel = (difference * unit).sum(1, keepdim=True) * unit
    expected = cond + 5.0 * (difference - parallel + 0.25 * parallel).view_as(cond)
    got = tiny.sample(tiny.guided(nodes, model, eta=0.25, norm_threshold=1.5, momentum=-0.5), noise, cfg=6.0, sigmas=sigmas)
    torch.testing.assert_close(into(got).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_guidance_does_not_leak_into_the_next_run(nodes, flow, rule):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
    low = sigmas[5:]
    once = tiny.sample(tiny.guided(nodes, model, rule), noise, sigmas=low, latent=noise)
    used = tiny.guided(nodes, model, rule)
    tiny.sample(used, noise, sigmas=sigmas[:6])
    assert torch.equal(tiny.sample(used, noise, sigmas=low, latent=noise), once)


@pytest.mark.parametrize("rule", RULES)
def test_guidance_keeps_items_apart(nodes, built, rule):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched = tiny.guided(nodes, model, rule)
    alone = tiny.sample(patched, noise[1:])
    torch.testing.assert_close(tiny.sample(patched, noise)[1:], alone, rtol=1e-3, atol=1e-3)


def foreign_cfg(args):
    """Another pack's: CFG a little too strong, on x - denoised as core hands it out."""
    return args["uncond"] + (args["cond"] - args["uncond"]) * (args["cond_scale"] + 1)


class ForeignGuidance:
    def __call__(self, args):
        return foreign_cfg(args)


@pytest.mark.parametrize("foreign", [foreign_cfg, functools.partial(foreign_cfg), ForeignGuidance()])
def test_guidance_goes_on_from_what_a_foreign_cfg_function_made(nodes, built, foreign):
    """One step, against the published formula with the guidance that the foreign function gave, in float64."""
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max) * 0.9, 0.0])
    into, kept = model.model.process_latent_in, {}

    def keep(args):
        kept.update(args)
        return args["denoised"]

    taken = model.clone()
    taken.set_model_sampler_cfg_function(foreign)
    watched = taken.clone()
    watched.set_model_sampler_post_cfg_function(keep)
    tiny.sample(watched, noise, sigmas=sigmas, cfg=6.0)
    cond, guided = kept["cond_denoised"].double(), kept["denoised"].double()
    difference = ((guided - cond) / 5).flatten(1)  # what CFG of scale 6 would have added five times
    difference = difference * (1.5 / difference.norm(dim=1, keepdim=True)).clamp(max=1)
    unit = cond.flatten(1) / cond.flatten(1).norm(dim=1, keepdim=True)
    parallel = (difference * unit).sum(1, keepdim=True) * unit
    expected = cond + 5.0 * (difference - 0.75 * parallel).view_as(cond)
    patched = tiny.guided(nodes, taken, eta=0.25, norm_threshold=1.5, momentum=-0.5)
    got = into(tiny.sample(patched, noise, cfg=6.0, sigmas=sigmas)).double()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_neutral_guidance_leaves_a_foreign_cfg_function_alone(nodes, built, rule):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    taken = model.clone()
    taken.set_model_sampler_cfg_function(foreign_cfg)
    expected = tiny.sample(taken, noise)
    assert not torch.equal(expected, tiny.sample(model, noise))
    assert torch.equal(tiny.sample(tiny.guided(nodes, taken, rule, **RULES[rule].neutral), noise), expected)


@pytest.mark.parametrize("knob, value, said", [
    ("momentum", 1.5, "momentum is 1.5: it must be a number"), ("momentum", -1.5, "momentum is -1.5"), ("eta", 2.0, "eta is 2.0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(nodes, flow, knob, value, said):
    with pytest.raises(ValueError, match=said):
        tiny.guided(nodes, flow[0], **{knob: value})


@pytest.mark.parametrize("rule", ["apg", "rescale"])
def test_a_solver_of_several_steps_at_once_is_refused(nodes, flow, rule):
    model, shape = flow
    with pytest.raises(ValueError, match="sampler runs several steps at once.*Use another sampler"):
        tiny.sample(tiny.guided(nodes, model, rule), tiny.noise_for(shape, [1]), sampler=tiny.sampler(nodes, "paradigms"))


def test_guidance_adds_to_what_other_patches_did(nodes, flow):
    """Another pack's addition after the CFG step survives: the patches' effects on one step add up."""
    model, shape = flow
    noise, sigmas = tiny.noise_for(shape, [1]), torch.tensor([0.9, 0.0])

    def brighter(args):
        return args["denoised"] + 0.5

    other = model.clone()
    other.set_model_sampler_post_cfg_function(brighter)
    runs = [model, other, tiny.guided(nodes, model), tiny.guided(nodes, other)]
    plain, brightened, projected, both = (tiny.sample(m, noise, sigmas=sigmas) for m in runs)
    torch.testing.assert_close(both - projected, brightened - plain, rtol=1e-3, atol=1e-3)
