"""Turbo Edit on tiny models in the real ComfyUI: equal to a loop by hand, the picture itself where the prompts agree."""

from itertools import pairwise

import comfy.nested_tensor
import comfy.samplers
import comfy.supported_models
import comfy.utils
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_distillery.samplers.noise import gaussian, initial, item_seeds
from tiny_video_networks import LTXAV
from turbo_cases import latent_for, prompt, stand_in, turbo

SEED = 11
PROFILES = {"sd15": "lcm-sd15", "flux-schnell": "flux-schnell", "sdxl": "hyper-sdxl-cfg", "wan22": "wan21-lightx2v"}
every_base = pytest.mark.parametrize("base", PROFILES, indirect=True)
VIDEO_AND_AUDIO = ((8, 2, 4, 4), (8, 6, 16))


@pytest.fixture(scope="module", params=["flux-schnell"])
def base(request):
    model, shape = stand_in(request.param)
    return model, shape, PROFILES[request.param]


def words(model, given):
    """CONDITIONING, of a seed or as it is."""
    return prompt(model, given) if isinstance(given, int) else given


def edit(nodes, model, profile, latent, source=1, target=4, denoise=1.0, steps=0, seed=SEED, **more):
    """(samples, text)"""
    with torch.inference_mode():
        made, text = tiny.run(
            nodes["Distillery_TurboEdit"], model=model, profile=profile, steps=steps, seed=seed, denoise=denoise, latent_image=latent,
            source=words(model, source), target=words(model, target), **{"negative": prompt(model, 2), **more},
        )  # fmt: skip
    return made["samples"], text


def predicted(model, cfg, positive, x, sigma):
    """What core's CFGGuider makes of x at one noise level, in a run of its own."""

    def once(denoise, unused, sigmas, extra_args=None, callback=None, disable=None):
        return denoise(x, sigma.expand(len(x)), **extra_args)

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(model, positive), prompt(model, 2))
    guider.set_cfg(cfg)
    sigmas = torch.stack([sigma, torch.zeros(())])
    made = guider.sample(x * 0, x * 0, comfy.samplers.KSAMPLER(once), sigmas, disable_pbar=True, seed=0)
    return model.model.process_latent_in(made)


def by_hand(nodes, model, profile, latent, denoise=1.0):
    """The same in a plain loop over runs of one prediction each, on the noise levels of Turbo Sampling."""
    patched, _, sigmas, cfg, _ = turbo(nodes, model, profile, denoise=denoise, latent=latent)
    is_flow = isinstance(patched.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    with torch.inference_mode():
        picture = model.model.process_latent_in(latent["samples"])
        seeds = item_seeds(SEED, len(picture))
        noise, draw, made = initial(picture.shape, seeds), gaussian(picture, seeds), picture
        for sigma, following in pairwise(sigmas):
            alpha = 1 - sigma if is_flow else 1.0
            of_target = predicted(patched, cfg, 4, alpha * made + sigma * noise, sigma)
            of_source = predicted(patched, cfg, 1, alpha * picture + sigma * noise, sigma)
            made = of_target - of_source + picture
            noise = draw(sigma, following)
        return model.model.process_latent_out(made)


@every_base
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_it_is_the_loop_by_hand(nodes, base, denoise):
    model, shape, profile = base
    latent = latent_for(shape, 2, seed=7)
    expected = by_hand(nodes, model, profile, latent, denoise)
    made, text = edit(nodes, model, profile, latent, denoise=denoise)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert (made - latent["samples"]).abs().mean() > 1e-3
    assert "DDCM" in text and text.startswith(turbo(nodes, model, profile, denoise=denoise, latent=latent)[4])


@every_base
def test_prompts_that_agree_give_the_picture(nodes, base):
    model, shape, profile = base
    latent = latent_for(shape, 2, seed=7)
    made, _ = edit(nodes, model, profile, latent, source=4)
    torch.testing.assert_close(made, latent["samples"], rtol=1e-6, atol=1e-6)


def test_a_latent_of_video_and_audio_is_edited_as_a_whole(nodes):
    model = tiny.build_from(comfy.supported_models.LTXAV, LTXAV)
    pair = [tiny.noise_for(shape, [7]) for shape in VIDEO_AND_AUDIO]
    latent = {"samples": comfy.nested_tensor.NestedTensor(pair)}
    source, target = ([[torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(seed)), {}]] for seed in (1, 4))
    same, _ = edit(nodes, model, "ltx2-distilled", latent, source, source)
    other, _ = edit(nodes, model, "ltx2-distilled", latent, source, target)
    for before, kept, changed in zip(pair, same.unbind(), other.unbind(), strict=True):
        torch.testing.assert_close(kept, before, rtol=1e-5, atol=1e-5)
        assert changed.shape == before.shape and changed.isfinite().all() and (changed - before).abs().mean() > 1e-4


def test_item_i_of_a_batch_is_seed_plus_i_alone(nodes, base):
    model, shape, profile = base
    latent = latent_for(shape, 3, seed=7)
    whole, _ = edit(nodes, model, profile, latent)
    third = {"samples": latent["samples"][2:]}
    alone, _ = edit(nodes, model, profile, third, seed=SEED + 2)
    picked, _ = edit(nodes, model, profile, {**third, "batch_index": [2]})
    tiny.assert_same(picked, alone)
    torch.testing.assert_close(whole[2:], alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(edit(nodes, model, profile, third)[0], alone, rtol=1e-2)


def test_a_mask_keeps_what_is_outside_and_one_of_ones_nothing(nodes, base):
    model, shape, profile = base
    latent, mask = latent_for(shape, seed=7), torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    made, _ = edit(nodes, model, profile, {**latent, "noise_mask": mask})
    torch.testing.assert_close(made[..., :4], latent["samples"][..., :4], rtol=1e-6, atol=1e-6)
    assert (made[..., 4:] - latent["samples"][..., 4:]).abs().mean() > 1e-2
    whole, _ = edit(nodes, model, profile, {**latent, "noise_mask": torch.ones(1, 64, 64)})
    torch.testing.assert_close(whole, edit(nodes, model, profile, latent)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", ["flux-schnell", "sdxl"], indirect=True)
def test_it_is_one_run_with_two_predictions_a_step_and_the_guider_as_it_was(nodes, base):
    model, shape, profile = base
    traced, report = tiny.run(nodes["Distillery_Trace"], model=model)
    moved = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: moved.append((value, total)))
    try:
        made, _ = edit(nodes, traced, profile, latent_for(shape, seed=7))
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    totals, rows = tiny.totals(report)
    steps, guided = len(rows), ["uncond"] if profile == "hyper-sdxl-cfg" else []
    assert moved[0] == (1, steps) and moved[-1] == (steps, steps)
    assert totals["branches"] == dict.fromkeys(["cond", *guided], 2 * steps)
    tiny.assert_same(made, edit(nodes, model, profile, latent_for(shape, seed=7))[0])


def test_hooks_can_tell_the_two_predictions_of_a_step_apart(nodes):
    """By the identity of the prompts, the negative's too, as caches do; each is the positive of its own."""
    model, shape = stand_in("sdxl")
    seen, model = [], model.clone()

    def look(executor, network, conds, x, timestep, model_options):
        seen.append([entries[0]["uuid"] for entries in conds])
        return executor(network, conds, x, timestep, model_options)

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "look", look)
    edit(nodes, model, "hyper-sdxl-cfg", latent_for(shape, seed=7))
    assert seen == seen[:2] * 8 and len({*seen[0], *seen[1]}) == 4


def test_embedded_guidance_is_on_both_prompts(nodes):
    model = tiny.build_from(comfy.supported_models.Flux, {**tiny.FLUX, "guidance_embed": True})
    latent = latent_for((16, 8, 8), seed=7)
    made, _ = edit(nodes, model, "hyper-flux", latent)
    guided = (tiny.run(nodes["FluxGuidance"], conditioning=prompt(model, seed), guidance=3.5)[0] for seed in (1, 4))
    tiny.assert_same(edit(nodes, model, "hyper-flux", latent, *guided)[0], made)


def test_bad_input_is_refused(nodes, base):
    model, shape, profile = base
    latent = latent_for(shape, seed=7)
    with pytest.raises(ValueError, match="latent_image is empty.*VAE Encode"):
        edit(nodes, model, profile, latent_for(shape))
    with pytest.raises(ValueError, match="latent_image has 4 channels and this model works on 16"):
        edit(nodes, model, profile, latent_for((4, 8, 8), seed=7))
    with pytest.raises(ValueError, match="steps is 40"):
        edit(nodes, model, profile, latent, steps=40)
    with pytest.raises(ValueError, match="denoise is 0"):
        edit(nodes, model, profile, latent, denoise=0)
    with pytest.raises(ValueError, match="is for SDXL"):
        edit(nodes, model, "sdxl-lightning", latent)
    with pytest.raises(ValueError, match="Connect both"):
        edit(nodes, *stand_in("wan22")[:1], "wan22-t2v-lightx2v", latent_for((16, 3, 8, 8), seed=7))
    sdxl, shape = stand_in("sdxl")
    with pytest.raises(ValueError, match="negative is not connected.*CFG 5"):
        edit(nodes, sdxl, "hyper-sdxl-cfg", latent_for(shape, seed=7), negative=None)
    with pytest.raises(ValueError, match="of pure noise only.*several steps"):
        edit(nodes, sdxl, "dmd2-sdxl-1step", latent_for(shape, seed=7))
