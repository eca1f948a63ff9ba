"""A cache beside all that core does with prompts, weights, masks and samplers, and beside our guidance.

The oracle is ``by_hand``, a loop around the uncached model that takes the last slope again. What core makes of its predictions is
linear in them, so that keeping each of them and keeping the guided slope are the same.
"""

import comfy.hooks
import comfy.samplers
import node_helpers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.caching import POLICIES
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from test_cache import BY_HAND, EVERY_SECOND, STEPS, assert_same, cached, every_second, fitting, from_parts
from test_parallel import between, control_net

with_values = node_helpers.conditioning_set_values


def sample(model, noise, positive=None, negative=None, sampler="euler", latent=None, mask=None, sigmas=None, steps=STEPS, callback=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or tiny.prompt(1), negative or tiny.prompt(2))
    guider.set_cfg(4.0)
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    latent = torch.zeros_like(noise) if latent is None else latent
    sigmas = tiny.schedule(model, steps) if sigmas is None else sigmas
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, mask, callback, disable_pbar=True, seed=5)


def check(nodes, model, noise, calls=1, whole_only=False, **given):
    """Every second step skipped is the loop by hand; every site skips the same steps and is finite.

    calls: of an evaluated step. whole_only: where blocks are left out already, their sites have nothing to keep.
    """
    patched, report = every_second(nodes, model)
    result = sample(patched, noise, **given)
    torch.testing.assert_close(result, sample(model, noise, sampler=BY_HAND, **given), rtol=2e-4, atol=2e-4)
    assert tiny.totals(report)[0]["calls"] == calls * len(EVERY_SECOND)
    for site in fitting(model):
        patched, report = every_second(nodes, model, site=site, forecast="newton")
        assert sample(patched, noise, **given).isfinite().all()
        ran = {row["step"] for row in tiny.totals(report)[1] if row["decision"] == "run"}
        assert ran == EVERY_SECOND or (whole_only and site[0] != "prediction")
    return result


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")


# Prompts


def test_positive_and_negative_in_calls_of_their_own(nodes, eps):
    """Prompts of 8 and 7 tokens, which core cannot put into one batch."""
    model, shape = eps
    ((tokens, rest),) = tiny.prompt(2)
    check(nodes, model, tiny.noise_for(shape, [1, 2]), calls=2, negative=[[tokens[:, :7], rest]])


def test_areas(nodes, eps):
    """Of two sizes: a call each. Core gives the negative prompt an entry of each area too."""
    model, shape = eps
    regions = with_values(tiny.prompt(3), {"area": (8, 4, 0, 4), "strength": 1.0}) + tiny.prompt(1)
    check(nodes, model, tiny.noise_for(shape, [1, 2]), calls=2, positive=regions)


def test_masked_regions(nodes, built):
    model, shape = built
    left = torch.zeros(1, *shape[1:])
    left[..., :4] = 1
    regions = with_values(tiny.prompt(1), {"mask": left}) + with_values(tiny.prompt(3), {"mask": 1 - left})
    check(nodes, model, tiny.noise_for(shape, [1, 2]), positive=regions)


def test_inpainting(nodes, built):
    model, shape = built
    mask = torch.zeros(1, 1, *shape[1:])
    mask[..., :4] = 1
    check(nodes, model, tiny.noise_for(shape, [1, 2]), latent=tiny.noise_for(shape, [7, 8]), mask=mask)


def test_a_prompt_that_begins_is_evaluated_first(nodes, eps):
    """At step 4, which the interval leaves out; the prompt that goes on is in another call from then on, and begins anew with it."""
    model, shape = eps
    sigmas = tiny.schedule(model, STEPS)
    start = tiny.percent_between(model, float(sigmas[3]), float(sigmas[4]))
    patched, report = every_second(nodes, model)
    parts = between(tiny.prompt(1), 0.0, start) + between(tiny.prompt(3), start, 1.0)
    assert sample(patched, tiny.noise_for(shape, [1]), positive=parts).isfinite().all()
    rows = tiny.totals(report)[1]
    assert {row["step"] for row in rows if row["decision"] == "run"} == EVERY_SECOND | {4}
    assert rows[4]["reason"] == "nothing to skip with yet" and rows[4]["evaluations"] == {"cond": 1, "uncond": 1}


def controlled(model, uncond, end=1.0):
    """A prompt with a ControlNet until that share of sampling."""
    control = control_net(model)
    control.set_cond_hint(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 1.0, (0.0, end))
    return with_values(tiny.prompt(1), {"control": control, "control_apply_to_uncond": uncond})


@pytest.mark.parametrize("uncond", [True, False])
def test_control_net(nodes, eps, uncond):
    model, shape = eps
    check(nodes, model, tiny.noise_for(shape, [1, 2]), calls=1 if uncond else 2, positive=controlled(model, uncond))


def test_what_was_kept_with_a_control_net_ends_with_it(nodes, eps):
    """At step 6, which the interval leaves out."""
    model, shape = eps
    sigmas = tiny.schedule(model, STEPS)
    end = tiny.percent_between(model, float(sigmas[5]), float(sigmas[6]))
    for site in fitting(model):
        patched, report = every_second(nodes, model, site=site)
        assert sample(patched, tiny.noise_for(shape, [1]), positive=controlled(model, True, end)).isfinite().all()
        assert {row["step"] for row in tiny.totals(report)[1] if row["decision"] == "run"} == EVERY_SECOND | {6}


# Weights


def lora(model):
    """(name, patch) of a LoRA's kind on the first matrix of the network."""
    state = model.model.state_dict()
    name = next(key for key, value in state.items() if key.endswith("weight") and value.ndim == 2)
    return {name: (0.5 * torch.ones_like(state[name]),)}


def test_a_lora(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    plain = sample(model, noise)
    patched = model.clone()
    patched.add_patches(lora(model))
    check(nodes, patched, noise)
    after = every_second(nodes, model)[0].clone()  # the LoRA behind the cache
    after.add_patches(lora(model))
    assert_same(sample(after, noise), sample(every_second(nodes, patched)[0], noise))
    assert_same(sample(model, noise), plain)


def test_a_lora_on_a_schedule_begins_anew_where_its_strength_changes(nodes, eps):
    model, shape = eps
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights, hook.need_weight_init = lora(model), False
    sigmas = tiny.schedule(model, STEPS)
    change = tiny.percent_between(model, float(sigmas[5]), float(sigmas[6]))
    hook.hook_keyframe = comfy.hooks.HookKeyframeGroup()
    for keyframe in ({"strength": 1.0}, {"strength": 0.2, "start_percent": change}):
        hook.hook_keyframe.add(comfy.hooks.HookKeyframe(**keyframe))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    patched, report = every_second(nodes, model)
    patched.register_all_hook_patches(group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    assert sample(patched, tiny.noise_for(shape, [1]), positive=with_values(tiny.prompt(1), {"hooks": group})).isfinite().all()
    rows = tiny.totals(report)[1]
    assert {row["step"] for row in rows if row["evaluations"].get("cond")} == EVERY_SECOND | {6}
    assert {row["step"] for row in rows if row["evaluations"].get("uncond")} == EVERY_SECOND


# Policies


@pytest.mark.parametrize("policy", ["first_block", "accumulated", "magnitude", "rate", "stability", "budget"])
def test_each_policy_skips_as_often_as_it_may(nodes, built, policy):
    """With a threshold that nothing reaches and one skip in a row: every second step, once there is something to go by."""
    model, shape = built
    threshold = next(knob.name for knob in POLICIES[policy].knobs if knob.name in POLICIES[policy].neutral)
    patched, report = from_parts(nodes, model, policy, most_in_a_row=1, **{threshold: 10.0})
    sample(patched, tiny.noise_for(shape, [1, 2]))
    assert [row["step"] for row in tiny.totals(report)[1] if row["decision"] == "skip"] == ([3, 5, 7] if policy == "stability" else [2, 4, 6, 8])


@pytest.mark.parametrize("policy", ["first_block", "accumulated"])
def test_decisions_follow_the_latents(nodes, built, policy):
    """At the whole prediction the change is the latent's, told over again here from what the sampler shows."""
    model, shape = built
    seen = []
    threshold = {"first_block": "block_threshold", "accumulated": "sum_threshold"}[policy]
    patched, report = from_parts(nodes, model, policy, last_steps=0, **{threshold: 0.3})
    sample(patched, tiny.noise_for(shape, [1, 2]), steps=20, callback=lambda step, denoised, x, total: seen.append(x.clone()))
    rows, last, summed = tiny.totals(report)[1], None, 0.0
    for step, x in enumerate(seen):
        if step > 1:
            since = seen[last] if policy == "first_block" else seen[step - 1]
            summed = float((x - since).abs().sum() / since.abs().sum()) + (0 if policy == "first_block" else summed)
        ran = step < 2 or summed >= 0.3 or step - last > 4
        assert (rows[step]["decision"] == "run") is ran, step
        last, summed = (step, 0.0) if ran else (last, summed)
    assert {row["decision"] for row in rows} == {"run", "skip"}


# Samplers


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m", "heunpp2", "dpm_2", "dpmpp_sde", "euler_cfg_pp", "dpm_adaptive"])
def test_samplers(nodes, eps, name):
    model, shape = eps
    noise = tiny.noise_for(shape, [1])
    for preset in ("automatic", "deep_branch"):
        patched, _ = cached(nodes, model, preset, 1.0)
        torch.manual_seed(0)
        result = sample(patched, noise, sampler=name)
        torch.manual_seed(0)
        assert_same(sample(patched, noise, sampler=name), result)
    torch.manual_seed(0)
    result = sample(every_second(nodes, model, min_steps=1000)[0], noise, sampler=name)
    torch.manual_seed(0)
    assert_same(result, sample(model, noise, sampler=name))


@pytest.mark.parametrize("name", ["heun", "dpm_2"])
def test_a_step_is_skipped_with_all_its_evaluations(nodes, flow, name):
    """One decision for both, counted once, though Heun's second is at the level of the next step."""
    model, shape = flow
    patched, report = from_parts(nodes, model, interval=100, most_in_a_row=1)
    sample(patched, tiny.noise_for(shape, [1]), sampler=name)
    totals, rows = tiny.totals(report)
    skipped = [row.get("skipped", {}).get("cond", 0) for row in rows]
    left_out = [step not in EVERY_SECOND for step in range(STEPS)]  # two first steps, then one skipped and one not
    assert skipped == [2 * gone for gone in left_out]
    assert totals["branches"]["cond"] == 2 * STEPS - 1 - sum(skipped)


def test_noise_that_is_added_again_begins_anew(nodes, built):
    model, shape = built
    sigmas = tiny.schedule(model, 12)
    rising = torch.cat([sigmas[:8], sigmas[3:]])
    patched, report = from_parts(nodes, model, interval=2, forecast=("newton", {"order": 2}))
    assert sample(patched, tiny.noise_for(shape, [1, 2]), sigmas=rising).isfinite().all()
    rows = tiny.totals(report)[1]
    assert [row["step"] for row in rows if row["decision"] == "skip"] == [2, 4, 6, 10, 12, 14]
    assert rows[8]["reason"] == "nothing to skip with yet"


def test_context_windows_remember_apart(nodes):
    model, shape = tiny.build("video")
    windows = {
        "context_length": 3, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False,
        "fuse_method": "pyramid", "dim": 2, "freenoise": False, "causal_window_fix": False,
    }  # fmt: skip
    windowed = tiny.run(nodes["ContextWindowsManual"], model=model, **windows)[0]
    check(nodes, windowed, tiny.noise_for((shape[0], 5, *shape[2:]), [1]), calls=2)


# Beside guidance


@pytest.mark.parametrize("kind, name", [("eps", "PerturbedAttentionGuidance"), ("flow", "SkipLayerGuidanceDiT")])
def test_a_prediction_with_other_attention_or_fewer_blocks_is_remembered_apart(nodes, kind, name):
    """Core's nodes evaluate the positive prompt again with patches of their own, and add a share of the difference."""
    model, shape = tiny.build(kind)
    fewer = {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    guided = tiny.run(nodes[name], model=model, scale=2.0, **(fewer if kind == "flow" else {}))[0]
    ((tokens, rest),) = tiny.prompt(2)
    prompts = {"negative": [[tokens[:, :7], rest]]}  # so that the positive has a call of its own, as it has for these nodes
    noise = tiny.noise_for(shape, [1, 2])
    result = check(nodes, guided, noise, calls=3, whole_only=kind == "flow", **prompts)
    assert not torch.equal(result, sample(every_second(nodes, model)[0], noise, **prompts))


def test_a_further_evaluation_in_a_prediction_is_never_skipped(nodes, eps):
    """Core's self-attention guidance: of a blurred latent, with the negative prompt and patches of the first evaluation."""
    model, shape = eps
    ((tokens, rest),) = tiny.prompt(2)
    alone = [[tokens[:, :7], rest]]  # in a call of its own
    guided, noise = tiny.run(nodes["SelfAttentionGuidance"], model=model, scale=0.5, blur_sigma=2.0)[0], tiny.noise_for(shape, [1])
    patched, report = every_second(nodes, guided)
    assert sample(patched, noise, negative=alone).isfinite().all()
    assert tiny.totals(report)[0]["calls"] == 2 * len(EVERY_SECOND) + STEPS
    never, _ = every_second(nodes, guided, min_steps=STEPS + 1)
    assert_same(sample(never, noise, negative=alone), sample(guided, noise, negative=alone))


GUIDED = {**{key: {} for key in SKIPS}, "apg": {"eta": 0.5, "norm_threshold": 2.0, "momentum": -0.5}, "adaptive": {"threshold": 0.9}}


@pytest.mark.parametrize("rule", GUIDED)
def test_beside_guidance(nodes, built, rule):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])

    def guided(model):
        return tiny.guided(nodes, model, rule, **GUIDED[rule])

    alone = sample(guided(model), noise)
    unet = type(model.model.diffusion_model).__name__ == "UNetModel"
    for preset in ("automatic", "deep_branch" if unet else "first_block"):
        before, after = guided(cached(nodes, model, preset, 0.0)[0]), cached(nodes, guided(model), preset, 0.0)[0]
        assert_same(sample(before, noise), alone)
        assert_same(sample(after, noise), alone)
        before, after = (guided(cached(nodes, model, preset, 1.0)[0]), cached(nodes, guided(model), preset, 1.0)[0])
        assert_same(sample(before, noise), sample(after, noise))
