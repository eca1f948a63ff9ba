"""Skipping beside all that core does with prompts, weights and samplers: dropped steps are core's CFGOverride with CFG 1."""

import comfy.hooks
import comfy.samplers
import node_helpers
import pytest
import tiny
import torch
from test_parallel import control_net
from tiny import DROPS, assert_same

STEPS, GUIDED = 6, 3
with_values = node_helpers.conditioning_set_values


def sample(model, noise, positive=None, negative=None, sampler="euler", latent=None, mask=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or tiny.prompt(1), negative or tiny.prompt(2))
    guider.set_cfg(4.0)
    sampler = comfy.samplers.sampler_object(sampler)
    latent = torch.zeros_like(noise) if latent is None else latent
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, tiny.schedule(model, STEPS), mask, disable_pbar=True, seed=5)


def check(nodes, model, noise, evaluations, **given):
    """Guided at three of six steps: core's CFGOverride from there. evaluations: of the positive and negative prompt's entries."""
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS, max_guided=GUIDED)
    core = tiny.unguided_from(nodes, model, tiny.schedule(model, STEPS), GUIDED)
    result = sample(patched, noise, **given)
    assert_same(result, sample(core, noise, **given))
    totals, rows = tiny.totals(report)
    assert (totals["branches"]["cond"], totals["branches"]["uncond"]) == evaluations
    assert sum(row.get("skipped", {}).get("uncond", 0) for row in rows) > 0
    return result


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")


@pytest.fixture(scope="module")
def video():
    return tiny.build("video")


def test_areas(nodes, eps):
    """Core gives the negative prompt an entry of each area too."""
    model, shape = eps
    regions = with_values(tiny.prompt(3), {"area": (8, 4, 0, 4), "strength": 1.0}) + tiny.prompt(1)
    check(nodes, model, tiny.noise_for(shape, [1, 2]), (12, 6), positive=regions)


@pytest.mark.parametrize("of", ["positive", "negative"])
def test_masked_regions(nodes, built, of):
    model, shape = built
    left = torch.zeros(1, *shape[1:])
    left[..., :4] = 1
    regions = [
        entry for seed, half in ((1, left), (3, 1 - left))
        for entry in with_values(tiny.prompt(seed), {"mask": half, "mask_strength": 1.0})
    ]  # fmt: skip
    check(nodes, model, tiny.noise_for(shape, [1, 2]), (12, 3) if of == "positive" else (6, 6), **{of: regions})


def test_inpainting(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    mask = torch.zeros(1, 1, *shape[1:])
    mask[..., :4] = 1
    check(nodes, model, noise, (6, 3), latent=tiny.noise_for(shape, [7, 8]), mask=mask)


@pytest.mark.parametrize("uncond", [True, False])
def test_control_net(nodes, eps, uncond):
    model, shape = eps
    control = control_net(model)
    control.set_cond_hint(torch.rand(1, 3, 8 * shape[1], 8 * shape[2], generator=torch.Generator().manual_seed(0)), 1.0)
    noise = tiny.noise_for(shape, [1, 2])
    controlled = with_values(tiny.prompt(1), {"control": control, "control_apply_to_uncond": uncond})
    result = check(nodes, model, noise, (6, 3), positive=controlled)
    assert not torch.allclose(result, check(nodes, model, noise, (6, 3)), atol=1e-2)


def test_a_lora(nodes, built):
    model, shape = built
    name = next(key for key, value in model.model.state_dict().items() if key.endswith("weight") and value.ndim == 2)
    lora = model.clone()
    weight = model.model.state_dict()[name]
    lora.add_patches({name: (0.5 * torch.ones_like(weight),)})
    noise = tiny.noise_for(shape, [1])
    before = sample(model, noise)
    result = check(nodes, lora, noise, (6, 3))
    assert not torch.equal(result, sample(tiny.guided(nodes, model, "adaptive", **DROPS, max_guided=GUIDED), noise))
    assert_same(sample(model, noise), before)


@pytest.mark.parametrize("of, seed", [("positive", 1), ("negative", 2)])
def test_a_prompt_with_a_lora_of_its_own(nodes, built, of, seed):
    """Core runs the two prompts one after the other then, each on weights of its own."""
    model, shape = built
    name = next(key for key, value in model.model.state_dict().items() if key.endswith("weight") and value.ndim == 2)
    lora = {name.removesuffix(".weight") + ".diff": 0.1 * torch.ones_like(model.model.state_dict()[name])}
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    hooked = {of: comfy.hooks.set_hooks_for_conditioning(tiny.prompt(seed), hooks)}
    noise = tiny.noise_for(shape, [1, 2])
    before = sample(model, noise)
    result = check(nodes, model, noise, (6, 3), **hooked)
    assert not torch.equal(result, check(nodes, model, noise, (6, 3)))
    assert_same(sample(model, noise), before)


@pytest.mark.parametrize("sampler, evaluations", [
    ("euler_ancestral", (6, 3)), ("dpm_2_ancestral", (11, 5)), ("dpmpp_sde", (11, 6)), ("lms", (6, 3)), ("uni_pc", (6, 3)),
    ("ddim", (6, 3)), ("res_multistep", (6, 3)),
])  # fmt: skip
def test_samplers(nodes, built, sampler, evaluations):
    model, shape = built
    check(nodes, model, tiny.noise_for(shape, [1, 2]), evaluations, sampler=sampler)


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_samplers_that_step_along_the_unconditional_prediction(nodes, built, sampler):
    """They take the conditional one for it where the negative prompt is dropped. Core cannot leave it out for them at all."""
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)
    lowest = float(sigmas[GUIDED - 1] + sigmas[GUIDED]) / 2

    def drop(args):
        cond, uncond = args["conds_out"]
        return [cond, uncond if args["sigma"][0] > lowest else cond]

    core = model.clone()
    core.set_model_sampler_pre_cfg_function(drop)
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS, max_guided=GUIDED)
    torch.testing.assert_close(
        sample(patched, noise, sampler=sampler), sample(core, noise, sampler=sampler), rtol=1e-3, atol=1e-3
    )
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "uncond": GUIDED}


# Prompts for part of the run


def between(model, sigmas, first, last):
    """The values of a prompt that acts at the steps from ``first`` to before ``last``."""
    start = tiny.percent_between(model, float(sigmas[first - 1]), float(sigmas[first])) if first else 0.0
    end = tiny.percent_between(model, float(sigmas[last - 1]), float(sigmas[last])) if last < STEPS else 1.0
    return {"start_percent": start, "end_percent": end}


@pytest.mark.parametrize("of", ["positive", "negative"])
def test_other_prompts_are_compared_afresh(nodes, built, of):
    """Guided at two steps with the first prompt, which is followed by another at the fourth step: at two steps with that."""
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)
    prompts = with_values(tiny.prompt(1), between(model, sigmas, 0, 3)) + with_values(
        tiny.prompt(3), between(model, sigmas, 3, 6)
    )
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS, max_guided=2)
    core = tiny.unguided_from(nodes, tiny.unguided_from(nodes, model, sigmas, 5), sigmas, 2, 3)
    assert_same(*(sample(m, noise, **{of: prompts}) for m in (patched, core)))
    assert [row["decision"] for row in tiny.totals(report)[1]] == ["guide", "guide", "drop", "guide", "guide", "drop"]


def test_a_negative_prompt_that_does_not_act_is_left_to_core(nodes, built):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)
    later = with_values(tiny.prompt(2), between(model, sigmas, 2, 6))
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS, max_guided=2)
    core = tiny.unguided_from(nodes, model, sigmas, 4)
    assert_same(*(sample(m, noise, negative=later) for m in (patched, core)))
    assert [row.get("decision") for row in tiny.totals(report)[1]] == [None, None, "guide", "guide", "drop", "drop"]


def test_a_control_net_that_ends_is_a_change_of_prompts(nodes, eps):
    model, shape = eps
    noise, sigmas = tiny.noise_for(shape, [1]), tiny.schedule(model, STEPS)
    end = between(model, sigmas, 0, 3)["end_percent"]
    control = control_net(model)
    control.set_cond_hint(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 1.0, (0.0, end))
    prompt = with_values(tiny.prompt(1), {"control": control, "control_apply_to_uncond": True})
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS, max_guided=2)
    core = tiny.unguided_from(nodes, tiny.unguided_from(nodes, model, sigmas, 5), sigmas, 2, 3)
    assert_same(*(sample(m, noise, positive=prompt) for m in (patched, core)))
    assert [row["decision"] for row in tiny.totals(report)[1]] == ["guide", "guide", "drop", "guide", "guide", "drop"]


# Context windows


def windowed(nodes, model):
    return tiny.run(
        nodes["ContextWindowsManual"], model=model, context_length=3, context_overlap=1, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False, cond_retain_index_list="",
        split_conds_to_windows=False, latent_retain_index_list="", causal_window_fix=False,
    )[0]  # fmt: skip


def test_context_windows(nodes, video):
    """Two windows of three frames each."""
    model, shape = video
    check(nodes, windowed(nodes, model), tiny.noise_for((shape[0], 5, *shape[2:]), [1]), (12, 6))


def test_each_context_window_has_a_state_of_its_own(nodes, video):
    """The last unconditional prediction again, of the same window: as when core averages the windows' predictions itself."""
    model, shape = video
    noise, sigmas, kept = tiny.noise_for((shape[0], 5, *shape[2:]), [1]), tiny.schedule(model, STEPS), {}

    def by_hand(args):
        cond, uncond = args["conds_out"]
        sigma = float(args["sigma"][0])
        if (sigmas >= sigma * 0.9999).sum() % 2 == 1:
            kept["difference"] = (cond - uncond) / sigma
        return [cond, cond - sigma * kept["difference"]]

    core = windowed(nodes, model).clone()
    core.set_model_sampler_pre_cfg_function(by_hand)
    patched, report = tiny.guided_with_report(
        nodes, windowed(nodes, model), "every_nth", every=2, warm_up=1, reuse="difference"
    )
    result, expected = sample(patched, noise), sample(core, noise)
    assert (result - expected).norm() < 1e-3 * expected.norm(), ((result - expected).norm(), expected.norm())
    assert tiny.totals(report)[0]["branches"] == {"cond": 12, "uncond": 6}


@pytest.mark.parametrize("rule", ["apg", "rescale"])
def test_shaping_beside_context_windows_works_on_the_whole_video(nodes, video, rule):
    model, shape = video
    noise = tiny.noise_for((shape[0], 5, *shape[2:]), [1])
    patched = tiny.guided(nodes, windowed(nodes, model), rule)
    result = sample(patched, noise)
    assert result.isfinite().all() and not torch.equal(result, sample(windowed(nodes, model), noise))
    assert_same(sample(patched, noise), result)
