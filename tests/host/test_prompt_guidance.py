"""Guidance by a third prompt in the real ComfyUI: against formulas in float64 on separate predictions, and core's guiders."""

from itertools import pairwise

import comfy.samplers
import node_helpers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance.contrast import CONTRASTS
from test_parallel import control_net
from tiny import DROPS, assert_same

STEPS = 6


def prompted(nodes, model, method, seed=3, **knobs):
    """(model, report) guided by a third prompt too."""
    return tiny.run(
        nodes["Distillery_PromptGuidance"], model=model, prompt=tiny.prompt(seed), method={"method": method, **knobs}
    )


def sample(model, noise, positive=None, negative=None, cfg=4.0, sigmas=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or tiny.prompt(1), negative or tiny.prompt(2))
    guider.set_cfg(cfg)
    return tiny.sample_with(guider, noise, tiny.schedule(model, STEPS) if sigmas is None else sigmas)


class OneStep:
    """One step from nearly the highest noise level, which ends on the denoised latent."""

    def __init__(self, model, noise):
        self.model, self.noise = model, noise
        self.sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max) * 0.9, 0.0])

    def __call__(self, model, **given):
        return self.model.model.process_latent_in(sample(model, self.noise, sigmas=self.sigmas, **given)).double()

    def alone(self, seed):
        return self(self.model, positive=tiny.prompt(seed), cfg=1.0)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_perpendicular_is_the_published_formula_item_by_item(nodes, built, share):
    model, shape = built
    step = OneStep(model, tiny.noise_for(shape, [1, 2]))
    cond, uncond, empty = (step.alone(seed) for seed in (1, 2, 3))
    positive, negative = (cond - empty).flatten(1), (uncond - empty).flatten(1)
    along = (positive * negative).sum(1, keepdim=True) / (positive * positive).sum(1, keepdim=True)
    perpendicular = empty + 4.0 * (positive - 1.5 * (negative - along * positive)).view_as(empty)
    plain = uncond + 4.0 * (cond - uncond)
    got = step(prompted(nodes, model, "perpendicular", neg_scale=1.5, share=share)[0])
    close(got, share * perpendicular + (1 - share) * plain)


def test_perpendicular_is_core_for_one_item(nodes, built):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1]), tiny.schedule(model, STEPS)
    guider = tiny.run(
        nodes["PerpNegGuider"], model=model, positive=tiny.prompt(1), negative=tiny.prompt(2), empty_conditioning=tiny.prompt(3),
        cfg=4.0, neg_scale=1.5,
    )[0]  # fmt: skip
    patched, report = prompted(nodes, model, "perpendicular", neg_scale=1.5, share=1.0)
    close(sample(patched, noise), tiny.sample_with(guider, noise, sigmas))
    totals, _ = tiny.totals(report)
    assert totals["branches"] == {"cond": STEPS, "uncond": STEPS, "empty": STEPS} and totals["calls"] == STEPS


def test_a_third_prompt_may_have_a_control_net(nodes):
    model, shape = tiny.build("eps")
    noise, sigmas = tiny.noise_for(shape, [1]), tiny.schedule(model, STEPS)
    control = control_net(model)
    control.set_cond_hint(torch.rand(1, 3, 8 * shape[1], 8 * shape[2], generator=torch.Generator().manual_seed(0)), 1.0)
    empty = node_helpers.conditioning_set_values(tiny.prompt(3), {"control": control})
    method = {"method": "perpendicular", "neg_scale": 1.0, "share": 1.0}
    patched, _ = tiny.run(nodes["Distillery_PromptGuidance"], model=model, prompt=empty, method=method)
    guider = tiny.run(
        nodes["PerpNegGuider"],
        model=model,
        positive=tiny.prompt(1),
        negative=tiny.prompt(2),
        empty_conditioning=empty,
        cfg=4.0,
        neg_scale=1.0,
    )[0]
    close(sample(patched, noise), tiny.sample_with(guider, noise, sigmas))
    assert not torch.allclose(sample(patched, noise), sample(prompted(nodes, model, **method)[0], noise), atol=1e-2)


@pytest.mark.parametrize("weights", [(1.5,), (1.5, -0.5), (1.0, 2.0, 0.5)], ids=str)
def test_several_prompts_each_have_their_scale(nodes, built, weights):
    """uncond + scale (cond - uncond) + sum of weight (other - uncond), whatever their number."""
    model, shape = built
    step = OneStep(model, tiny.noise_for(shape, [1, 2]))
    cond, uncond = step.alone(1), step.alone(2)
    patched, expected = model, uncond + 4.0 * (cond - uncond)
    for seed, weight in enumerate(weights, 3):
        patched, report = prompted(nodes, patched, "several", seed, weight=weight)
        expected = expected + weight * (step.alone(seed) - uncond)
    close(step(patched), expected)
    assert tiny.totals(report)[0]["evaluations"] == 2 + len(weights)


def test_another_prompt_at_weight_1_less_scale_is_the_positive_one(nodes, built):
    """With the prompt itself as the other one, the two scales add up."""
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched, _ = prompted(nodes, model, "several", seed=1, weight=1.5)
    close(sample(patched, noise, cfg=2.5), sample(model, noise, cfg=4.0))


def test_alternating_all_of_the_time_is_the_other_negative(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched, report = prompted(nodes, model, "alternating", share=1.0)
    assert_same(sample(patched, noise), sample(model, noise, negative=tiny.prompt(3)))
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "other negative": STEPS}


def test_alternating_takes_turns(nodes, built):
    """As core does with both negatives, each in the ranges of its own steps."""
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)
    borders = [0.0, *(tiny.percent_between(model, float(a), float(b)) for a, b in pairwise(sigmas[:-1])), 1.0]
    turns = []
    for i in range(STEPS):
        acts = {"start_percent": borders[i], "end_percent": borders[i + 1]}
        turns += node_helpers.conditioning_set_values(tiny.prompt(2 + i % 2), acts)
    patched, report = prompted(nodes, model, "alternating", share=0.5)
    assert_same(sample(patched, noise), sample(model, noise, negative=turns))
    rows = tiny.totals(report)[1]
    assert [list(row["evaluations"]) for row in rows] == [["cond", "uncond"], ["cond", "other negative"]] * 3


def test_a_third_prompt_needs_no_negative_that_acts(nodes, built):
    """Where the negative prompt does not act, the other one still does."""
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)
    start = tiny.percent_between(model, float(sigmas[2]), float(sigmas[3]))
    later = node_helpers.conditioning_set_values(tiny.prompt(2), {"start_percent": start, "end_percent": 1.0})
    patched, report = prompted(nodes, model, "alternating", share=1.0)
    assert_same(sample(patched, noise, negative=later), sample(model, noise, negative=tiny.prompt(3)))
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "other negative": STEPS}


# What holds for each


@pytest.mark.parametrize("method", CONTRASTS)
def test_neutral_is_core_bit_for_bit(nodes, built, method):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched, report = prompted(nodes, model, method, **CONTRASTS[method].neutral)
    assert_same(sample(patched, noise), sample(model, noise))
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "uncond": STEPS}


@pytest.mark.parametrize("method", CONTRASTS)
def test_repeats_itself_and_leaves_cfg_1_and_the_input_model_alone(nodes, built, method):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    before = sample(model, noise)
    patched, _ = prompted(nodes, model, method)
    assert_same(sample(patched, noise, cfg=1.0), sample(model, noise, cfg=1.0))
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(tiny.prompt(1), tiny.prompt(2))
    guider.set_cfg(4.0)
    first, again = (tiny.sample_with(guider, noise, tiny.schedule(model, STEPS)) for _ in range(2))
    assert_same(first, again)
    assert sorted(guider.original_conds) == ["negative", "positive"]
    assert not torch.equal(first, before)
    assert_same(sample(model, noise), before)


@pytest.mark.parametrize("method", CONTRASTS)
def test_items_stay_apart(nodes, built, method):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched, _ = prompted(nodes, model, method)
    close(sample(patched, noise)[1:], sample(patched, noise[1:]))


@pytest.mark.parametrize("method", CONTRASTS)
@pytest.mark.parametrize("after", [True, False])
def test_skipping_saves_the_third_prompt_too(nodes, built, method, after):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)
    core = tiny.unguided_from(nodes, prompted(nodes, model, method)[0], sigmas, 3)
    knobs = DROPS | {"max_guided": 3}
    if after:
        patched, report = tiny.guided_with_report(nodes, prompted(nodes, model, method)[0], "adaptive", **knobs)
    else:
        patched, report = prompted(nodes, tiny.guided(nodes, model, "adaptive", **knobs), method)
    assert_same(sample(patched, noise), sample(core, noise))
    totals, _ = tiny.totals(report)
    assert totals["branches"]["cond"] == STEPS
    assert totals["evaluations"] == STEPS + 3 * (1 if method == "alternating" else 2)


def test_items_decide_for_themselves_beside_a_third_prompt(nodes, built):
    model, shape = built
    noise, curves = tiny.noise_for(shape, [1, 2]), []
    patched = prompted(nodes, model, "several")[0]
    for item in noise:
        watched, report = tiny.guided_with_report(nodes, patched, "adaptive", threshold=1.01, max_guided=1000)
        sample(watched, item[None])
        curves.append(tiny.totals(report)[1][0]["values"]["similarity"])
    knobs = DROPS | {"threshold": sum(curves) / 2, "max_guided": 4}
    skipping, report = tiny.guided_with_report(nodes, patched, "adaptive", **knobs)
    close(sample(skipping, noise), torch.cat([sample(skipping, item[None]) for item in noise]))
    assert curves[0] != curves[1]


@pytest.mark.parametrize("method", CONTRASTS)
def test_shaping_goes_on_from_it(nodes, built, method):
    """Rescale to the conditional prediction's own spread: its statistics hold, and neutral shaping changes nothing."""
    model, shape = built
    step = OneStep(model, tiny.noise_for(shape, [1, 2]))
    patched, _ = prompted(nodes, model, method)
    rescaled = step(tiny.guided(nodes, patched, "rescale", phi=1.0, on="denoised"))
    torch.testing.assert_close(rescaled.flatten(1).std(1), step.alone(1).flatten(1).std(1), rtol=1e-3, atol=1e-3)
    assert_same(step(tiny.guided(nodes, patched, "rescale", phi=0.0)), step(patched))


# Where it cannot be


def test_a_prompt_with_hooks_is_refused(nodes, flow):
    hooked = node_helpers.conditioning_set_values(tiny.prompt(3), {"hooks": object()})
    with pytest.raises(ValueError, match="prompt has hooks"):
        tiny.run(nodes["Distillery_PromptGuidance"], model=flow[0], prompt=hooked, method={"method": "several"})


def test_a_guider_with_a_mix_of_its_own_is_refused_by_name(nodes, flow):
    model, shape = flow
    patched, _ = prompted(nodes, model, "perpendicular")
    guider = tiny.run(
        nodes["DualCFGGuider"], model=patched, cond1=tiny.prompt(1), cond2=tiny.prompt(2), negative=tiny.prompt(3), cfg_conds=4.0,
        cfg_cond2_negative=4.0, style="regular",
    )[0]  # fmt: skip
    with pytest.raises(ValueError, match="Guider_DualCFG mixes several prompts by a rule of its own.*Perpendicular negative"):
        tiny.sample_with(guider, tiny.noise_for(shape, [1]), tiny.schedule(model, STEPS))


def test_context_windows_are_refused_by_name(nodes):
    model, shape = tiny.build("video")
    patched, _ = prompted(nodes, model, "several")
    windowed = tiny.run(
        nodes["ContextWindowsManual"], model=patched, context_length=3, context_overlap=1, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False, causal_window_fix=False,
    )[0]  # fmt: skip
    with pytest.raises(ValueError, match="samples in context windows, which Another prompt cannot follow"):
        sample(windowed, tiny.noise_for((shape[0], 5, *shape[2:]), [1]))
