"""Smart Guidance in the real ComfyUI: the rules that its table names, at its own scale. And the rival it is measured against."""

import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance import smart
from comfyui_distillery.samplers.path import Path

from bench import rivals

PATHS = {"eps": Path("eps"), "flow": Path("flow"), "video": Path("flow")}


def smarter(nodes, model, **inputs):
    return tiny.run(nodes["Distillery_SmartGuidance"], model=model, **inputs)


@pytest.fixture(scope="module", params=list(PATHS))
def named(request):
    return request.param, *tiny.build(request.param)


@pytest.mark.parametrize("saving", smart.SAVINGS)
def test_it_is_the_rules_that_the_table_names_at_its_own_scale(nodes, named, saving):
    name, model, shape = named
    noise = tiny.noise_for(shape, [1, 2])
    by_hand = model
    for rule, knobs in smart.choice(PATHS[name], 8, 6.0, saving, noise[0].numel()):
        registry = smart.SKIPS if rule in smart.SKIPS.values() else smart.RULES
        key = next(key for key, entry in registry.items() if entry is rule)
        by_hand = tiny.guided(nodes, by_hand, key, **knobs)
    expected = tiny.sample(by_hand, noise, steps=8, cfg=6.0)
    patched, report = smarter(nodes, model, scale=6.0, saving=saving)
    for cfg in (1.0, 4.0):
        assert torch.equal(tiny.sample(patched, noise, steps=8, cfg=cfg), expected)
    skipped = sum(sum(row.get("skipped", {}).values()) for row in report.runs[-1]["steps"])
    assert (skipped > 0) == (saving != "nothing")


def test_scale_1_is_core_at_cfg_1(nodes, flow):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    patched, _ = smarter(nodes, model, scale=1.0, saving="balanced")
    assert torch.equal(tiny.sample(patched, noise, cfg=7.0), tiny.sample(model, noise, cfg=1.0))


def test_the_guider_s_own_scale_is_there_again_afterwards(nodes, flow):
    model, shape = flow
    patched, _ = smarter(nodes, model, scale=3.0, saving="balanced")
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(tiny.prompt(1), tiny.prompt(2))
    guider.set_cfg(7.5)
    noise = tiny.noise_for(shape, [1])
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), torch.tensor([0.9, 0.5, 0.0]),
                      disable_pbar=True, seed=0)  # fmt: skip
    assert guider.cfg == 7.5


@pytest.mark.parametrize("guider", ["BasicGuider", "DualCFGGuider"])
def test_guiders_without_one_scale_are_refused_by_name(nodes, flow, guider):
    model, shape = flow
    patched, _ = smarter(nodes, model, scale=3.0, saving="balanced")
    inputs = {
        "BasicGuider": {"conditioning": tiny.prompt(1)},
        "DualCFGGuider": {"cond1": tiny.prompt(1), "cond2": tiny.prompt(2), "negative": tiny.prompt(3), "cfg_conds": 4.0,
                          "cfg_cond2_negative": 4.0, "style": "regular"},
    }[guider]  # fmt: skip
    (made,) = tiny.run(nodes[guider], model=patched, **inputs)
    noise = tiny.noise_for(shape, [1])
    with pytest.raises(ValueError, match="Guider_.*has no one CFG scale.*use CFGGuider or KSampler"), torch.inference_mode():
        made.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), torch.tensor([0.9, 0.0]), disable_pbar=True)


def test_the_rival_drops_the_negative_for_good_once_denoised_predictions_agree(flow):
    """By core's own means: its post-CFG function tells the predictions, CFGOverride the same run."""
    model, shape = flow
    noise, seen = tiny.noise_for(shape, [1]), []
    watched = model.clone()

    def watch(args):
        seen.append(torch.cosine_similarity(args["cond_denoised"].flatten(1), args["uncond_denoised"].flatten(1)).item())
        return args["denoised"]

    watched.set_model_sampler_post_cfg_function(watch)
    tiny.sample(watched, noise, steps=6)
    threshold = max(seen[:3])
    last = next(i for i, value in enumerate(seen) if value >= threshold)
    rival, counted = rivals.adaptive_guider(model, threshold)
    tiny.sample(rival, noise, steps=6)
    assert counted["count"] == last + 1
    never, counted = rivals.adaptive_guider(model, 1.1)
    assert torch.equal(tiny.sample(never, noise, steps=6), tiny.sample(model, noise, steps=6)) and counted["count"] == 6
