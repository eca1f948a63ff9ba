"""Invert through the real CFGGuider and ModelPatcher: the way back gives the picture, on eps, flow and video models."""

import comfy.model_management
import comfy.samplers
import pytest
import tiny
import torch

METHODS = {"bdia": {}, "edict": {}}
CFG = 4.0
every_method = pytest.mark.parametrize("method", METHODS)


def sigmas_of(model, steps=8, denoise=1.0):
    total = round(steps / denoise)
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", total)[-(steps + 1) :]


def inverted(nodes, model, picture, sigmas, method="bdia", cfg=CFG, **inputs):
    """(LATENT, SAMPLER)"""
    given = {
        "model": model, "positive": tiny.prompt(1), "negative": tiny.prompt(2), "cfg": cfg, "sigmas": sigmas,
        "sampler": tiny.sampler(nodes, method), "latent_image": {"samples": picture},
    }  # fmt: skip
    with torch.inference_mode():
        return tiny.run(nodes["Distillery_Invert"], **(given | inputs))


def sampled(nodes, model, latent, sampler, sigmas, positive=1, cfg=CFG, add_noise=False):
    with torch.inference_mode():
        return tiny.run(
            nodes["SamplerCustom"], model=model, add_noise=add_noise, noise_seed=3, cfg=cfg, positive=tiny.prompt(positive),
            negative=tiny.prompt(2), sampler=sampler, sigmas=sigmas, latent_image=latent,
        )[0]["samples"]  # fmt: skip


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@every_method
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_the_way_back_gives_the_picture_and_another_prompt_another(nodes, built, method, denoise):
    model, shape = built
    picture, sigmas = tiny.noise_for(shape, [1, 2]), sigmas_of(model, denoise=denoise)
    latent, sampler = inverted(nodes, model, picture, sigmas, method)
    assert latent["samples"].isfinite().all() and relative(latent["samples"], picture) > 0.1
    assert relative(sampled(nodes, model, latent, sampler, sigmas), picture) < 1e-6
    assert relative(sampled(nodes, model, latent, sampler, sigmas, positive=3), picture) > 0.01
