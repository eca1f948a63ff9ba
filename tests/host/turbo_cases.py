"""Tiny MODELs that count as those of distilled families, and the pack's and core's nodes run on them."""

import tiny
import torch
from training_cases import built

CALLED = {  # what core finds in the files of these, and not in our tiny ones: so that they count as of their base
    "flux-schnell": ("flow", {"hidden_size": 3072}),
    "wan22": ("video", {"dim": 5120}),
    "sd15": ("eps", {"model_channels": 320}),
}


def stand_in(base):
    """(model, shape of a latent): tiny, and with the layers' sizes of a base in core's description of it."""
    name, config = CALLED.get(base, (base, {}))
    model, shape = built(name)
    model.model.model_config.unet_config |= config
    return model, shape


def from_file(model, name):
    """The model, as if one of core's loaders had read it from a file of this name."""
    model = model.clone()
    model.cached_patcher_init = (None, (f"/models/checkpoints/{name}",))
    return model


def prompt(model, seed):
    return [[torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(seed)), {"pooled_output": torch.ones(1, 64)}]]


def latent_for(shape, batch=1, seed=None):
    samples = torch.zeros(batch, *shape) if seed is None else tiny.noise_for(shape, range(seed, seed + batch))
    return {"samples": samples}


def turbo(nodes, model, profile="auto", steps=0, denoise=1.0, **more):
    """(MODEL, SAMPLER, SIGMAS, cfg, text)"""
    return tiny.run(nodes["Distillery_TurboSampling"], model=model, profile=profile, steps=steps, denoise=denoise, **more)


def quick(nodes, model, shape, profile="auto", steps=0, denoise=1.0, latent=None, **more):
    """(samples, text) of Turbo KSampler."""
    given = {"positive": prompt(model, 1), "latent_image": latent or latent_for(shape), "seed": 3}
    with torch.inference_mode():
        made, text = tiny.run(
            nodes["Distillery_TurboKSampler"], model=model, profile=profile, steps=steps, denoise=denoise, **given, **more
        )
    return made["samples"], text


def custom(nodes, model, sampler, sigmas, cfg, latent, add_noise=True, positive=None):
    """The samples that core's SamplerCustom makes of the same prompts and seed."""
    with torch.inference_mode():
        return tiny.run(
            nodes["SamplerCustom"], model=model, add_noise=add_noise, noise_seed=3, cfg=cfg, positive=positive or prompt(model, 1),
            negative=prompt(model, 2), sampler=sampler, sigmas=sigmas, latent_image=latent,
        )[0]["samples"]  # fmt: skip


def by_name(nodes, name):
    return tiny.run(nodes["KSamplerSelect"], sampler_name=name)[0]


def at_timesteps(model, *timesteps):
    """SIGMAS as core's own nodes make them of timesteps."""
    sigmas = model.get_model_object("model_sampling").sigma(torch.tensor(timesteps))
    return torch.cat([sigmas, sigmas.new_zeros(1)])
