"""The diffusers bridge wired into ComfyUI: what it asks of a MODEL, and its SAMPLER."""

import comfy.samplers
import torch

from ..samplers.diffusers_bridge import Facts
from .host import announced, path_of, timestep_table


def facts_of(model):
    """What a scheduler has to agree with. ValueError where core mixes signal and noise in a way that has no path."""
    sampling = model.get_model_object("model_sampling")
    return Facts(path_of(sampling), timestep_table(sampling), float(sampling.sigma_max))


def sampler_of(bridge):
    """A SAMPLER that runs the bridge's scheduler, shows its steps and stops within one of the user's interruption."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        base = model.inner_model.inner_model.model_sampling
        check_same(bridge, path_of(base), float(base.sigma_max))
        noise, latent = parts_of(sampler, model, x, sigmas)
        with announced(len(sigmas) - 1, callback, disable) as step_started:
            return bridge.sample(model, x, sigmas, extra_args, step_started, disable, noise=noise, latent=latent)

    sampler = comfy.samplers.KSAMPLER(sample)
    return sampler


def parts_of(sampler, model, x, sigmas):
    """(noise, latent) that core mixed x of, (None, None) where x is something else, as when another sampler calls this one."""
    if not hasattr(model, "noise"):
        return None, None
    base, noise, latent = model.inner_model.inner_model.model_sampling, model.noise, model.latent_image
    if not torch.equal(x, base.noise_scaling(sigmas[0], noise, latent, sampler.max_denoise(model.inner_model, sigmas))):
        return None, None
    return noise * getattr(base, "noise_scale", 1.0), latent


def check_same(bridge, path, sigma_max):
    """ValueError unless the MODEL that is sampled is one the scheduler was prepared for."""
    expected = bridge.path.prediction, bridge.path.sigma_data
    if (path.prediction, path.sigma_data) != expected or abs(sigma_max - bridge.sigma_max) > 1e-3 * bridge.sigma_max:
        raise ValueError(
            f"this sampler was made for a model that predicts {bridge.path.prediction}, with sigma to {bridge.sigma_max:.5g}, and is used on one "
            f"that predicts {path.prediction}, with sigma to {sigma_max:.5g}: connect the MODEL that is sampled to Diffusers Scheduler too."
        )
