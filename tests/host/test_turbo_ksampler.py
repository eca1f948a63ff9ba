"""Turbo KSampler, parts of runs, and pairs of networks, on tiny models in the real ComfyUI."""

import comfy.supported_models
import pytest
import tiny
import torch
from comfyui_distillery.nodes import host_turbo_models
from comfyui_distillery.samplers.turbo import PROFILES
from turbo_cases import at_timesteps, by_name, custom, latent_for, prompt, quick, stand_in, turbo


@pytest.fixture(scope="module")
def sdxl():
    return stand_in("sdxl")


@pytest.fixture(scope="module")
def schnell():
    return stand_in("flux-schnell")


# Turbo KSampler


def test_turbo_ksampler_is_the_custom_graph_bit_for_bit(nodes, sdxl):
    model, shape = sdxl
    patched, sampler, sigmas, cfg, text = turbo(nodes, model, "dmd2-sdxl")
    latent = latent_for(shape, 2)
    made, said = quick(nodes, model, shape, "dmd2-sdxl", latent=latent)
    tiny.assert_same(made, custom(nodes, patched, sampler, sigmas, cfg, latent))
    assert said == text


def test_the_negative_is_evaluated_only_where_the_profile_is_guided(nodes, sdxl):
    model, shape = sdxl
    alone, _ = quick(nodes, model, shape, "sdxl-lightning", 2)
    tiny.assert_same(quick(nodes, model, shape, "sdxl-lightning", 2, negative=prompt(model, 9))[0], alone)
    with pytest.raises(ValueError, match="negative is not connected.*CFG 5"):
        quick(nodes, model, shape, "hyper-sdxl-cfg", 8)
    ours, theirs = (quick(nodes, model, shape, "hyper-sdxl-cfg", 8, negative=prompt(model, seed))[0] for seed in (2, 9))
    assert not torch.allclose(ours, theirs, rtol=1e-2)


def test_embedded_guidance_is_the_profile_s_unless_the_prompt_has_its_own(nodes):
    model = tiny.build_from(comfy.supported_models.Flux, {**tiny.FLUX, "guidance_embed": True})
    shape, profile = (16, 8, 8), PROFILES["hyper-flux"]
    patched, sampler, sigmas, cfg, _ = turbo(nodes, model, "hyper-flux", latent=latent_for(shape))
    for given in (profile.guidance, 1.0):
        guided = tiny.run(nodes["FluxGuidance"], conditioning=prompt(model, 1), guidance=given)[0]
        own = {} if given == profile.guidance else {"positive": guided}
        with torch.inference_mode():
            made = tiny.run(
                nodes["Distillery_TurboKSampler"], model=model, profile="hyper-flux", steps=0, denoise=1.0, seed=3,
                latent_image=latent_for(shape), **{"positive": prompt(model, 1), **own},
            )[0]["samples"]  # fmt: skip
        tiny.assert_same(made, custom(nodes, patched, sampler, sigmas, cfg, latent_for(shape), positive=guided))


# A part of a run: pictures changed and inpainted


def test_at_half_denoise_a_student_of_listed_levels_starts_at_one_of_them(nodes, sdxl):
    model, shape = sdxl
    whole, half = (turbo(nodes, model, "dmd2-sdxl", denoise=denoise)[2] for denoise in (1.0, 0.5))
    assert half.tolist() == whole[2:].tolist()
    picture = latent_for(shape, seed=7)
    made, text = quick(nodes, model, shape, "dmd2-sdxl", denoise=0.5, latent=picture)
    tiny.assert_same(made, custom(nodes, model, by_name(nodes, "lcm"), at_timesteps(model, 499, 249), 1.0, picture))
    assert "denoise 0.5, 2 steps" in text
    with pytest.raises(ValueError, match=r"denoise is 0\.1.*none lies within it"):
        turbo(nodes, model, "dmd2-sdxl", denoise=0.1)


def test_inpainting_keeps_what_is_not_masked(nodes, schnell):
    model, shape = schnell
    picture, mask = latent_for(shape, seed=7), torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    made, _ = quick(nodes, model, shape, "flux-schnell", denoise=0.75, latent={**picture, "noise_mask": mask})
    torch.testing.assert_close(made[..., :4], picture["samples"][..., :4], rtol=0, atol=1e-5)
    assert (made[..., 4:] - picture["samples"][..., 4:]).abs().mean() > 0.1


@pytest.mark.parametrize("key", ["dmd2-sdxl-1step", "hyper-sdxl-1step"])
def test_a_picture_is_refused_where_the_one_step_begins_at_pure_noise(nodes, sdxl, key):
    model, shape = sdxl
    with pytest.raises(ValueError, match="latent_image is a picture's latent.*pure noise only.*Connect an empty latent"):
        quick(nodes, model, shape, key, latent=latent_for(shape, seed=7))
    assert quick(nodes, model, shape, key)[0].isfinite().all()


# Two networks


@pytest.fixture(scope="module")
def pair():
    (high, shape), (low, _) = stand_in("wan22"), stand_in("wan22")
    with torch.no_grad():
        for weight in low.model.diffusion_model.parameters():
            weight.mul_(1.5)
    return high, low, shape


def test_a_pair_is_sampled_as_two_custom_graphs_split_at_the_boundary(nodes, pair):
    high, low, shape = pair
    patched, other, sampler, first, second, cfg, text = tiny.run(
        nodes["Distillery_TurboStages"], high_noise_model=high, low_noise_model=low, profile="wan22-t2v-lightx2v", steps=0, denoise=1.0
    )
    profile = PROFILES["wan22-t2v-lightx2v"]
    times = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    whole = 5 * times / (1 + 4 * times)
    parts = tiny.run(nodes["SplitSigmas"], sigmas=whole, step=2)
    for ours, core in zip((first, second), parts):
        torch.testing.assert_close(ours, core, rtol=1e-6, atol=0)
    assert (first[:-1] >= profile.boundary).all() and (second[:-1] < profile.boundary).all()
    latent = latent_for(shape)
    halfway = custom(nodes, patched, sampler, first, cfg, latent)
    expected = custom(nodes, other, sampler, second, cfg, {"samples": halfway}, add_noise=False)
    made, said = quick(nodes, high, shape, "wan22-t2v-lightx2v", low_noise_model=low)
    tiny.assert_same(made, expected)
    assert said == text and "High noise: 1, 0.9375, 0.8333. Low noise: 0.8333, 0.625, 0." in text
    for half, levels in ((patched, first), (other, second)):
        found = tiny.run(nodes["Distillery_TurboCheck"], model=half, profile=profile.key, sigmas=levels, cfg=cfg)[5]
        assert "Nothing contradicts" in found
    same = quick(nodes, high, shape, "wan22-t2v-lightx2v", low_noise_model=high)[0]
    whole_run = custom(nodes, patched, sampler, torch.cat([first, second[1:]]), cfg, latent)
    torch.testing.assert_close(same, whole_run, rtol=1e-3, atol=1e-4)  # one network in two runs is one run
    assert not torch.allclose(made, same, rtol=1e-2)


@pytest.mark.parametrize("soft", [False, True])
def test_a_pair_inpaints_as_one_run_does(nodes, pair, soft):
    """One network given twice is one run, also where the mask is neither 0 nor 1."""
    high, low, shape = pair
    mask = torch.zeros(1, 64, 64)
    mask[..., 32:] = 0.5 if soft else 1
    picture = {**latent_for(shape, seed=7), "noise_mask": mask}
    kept = torch.zeros(shape[-1], dtype=torch.bool)
    kept[: shape[-1] // 2] = True
    made, _ = quick(nodes, high, shape, "wan22-t2v-lightx2v", latent=picture, low_noise_model=low)
    same, _ = quick(nodes, high, shape, "wan22-t2v-lightx2v", latent=picture, low_noise_model=high)
    one, _ = quick(nodes, high, shape, "wan21-lightx2v", latent=picture)  # of the same steps, shift and sampler
    torch.testing.assert_close(made[..., kept], picture["samples"][..., kept], rtol=0, atol=1e-4)
    assert (made[..., ~kept] - picture["samples"][..., ~kept]).abs().mean() > 0.1
    torch.testing.assert_close(same, one, rtol=1e-4, atol=1e-4)


def test_half_a_pair_is_refused_where_both_are_needed(nodes, pair):
    high, low, shape = pair
    for attempt in (turbo, lambda *given: quick(*given[:2], shape, *given[2:])):
        with pytest.raises(ValueError, match="Connect both"):
            attempt(nodes, high, "wan22-t2v-lightx2v")
    assert len(turbo(nodes, low, "wan22-t2v-lightx2v", denoise=0.5)[2]) == 3  # the low-noise network alone can do this
    stages = {"steps": 0, "profile": "wan22-t2v-lightx2v"}
    with pytest.raises(ValueError, match="the high-noise model has nothing to do"):
        tiny.run(nodes["Distillery_TurboStages"], high_noise_model=high, low_noise_model=low, denoise=0.5, **stages)
    with pytest.raises(ValueError, match="of one network: use Turbo Sampling"):
        tiny.run(nodes["Distillery_TurboStages"], high_noise_model=high, low_noise_model=low, denoise=1.0, **{**stages, "profile": "wan21-lightx2v"})
    carrying = host_turbo_models.carrying(high, PROFILES["wan22-i2v-lightx2v"], 4, "of a LoRA")
    other = host_turbo_models.carrying(low, PROFILES["wan22-t2v-lightx2v"], 4, "of a LoRA")
    with pytest.raises(ValueError, match=r"high-noise model is for Wan 2\.2 14B I2V.*low-noise model for Wan 2\.2 14B T2V"):
        tiny.run(nodes["Distillery_TurboStages"], high_noise_model=carrying, low_noise_model=other, profile="auto", steps=0, denoise=1.0)
