"""Runs of distilled models by core's SamplerCustom: whole, or one network after the other."""

from copy import copy
from functools import wraps

import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom


def sampled(runs, positive, negative, latent, seed):
    """A LATENT, sampled by core's SamplerCustom. runs: (Prepared, SIGMAS), one after the other; only the first adds noise.

    With a noise mask core keeps what is not masked at the latent and the noise that a run is given. So each later run gets those
    of the first, and goes on from what was sampled all the same.
    """
    made = latent
    for number, (run, sigmas) in enumerate(runs):
        goes_on = number > 0 and "noise_mask" in latent
        sampler = continued(run.sampler, made["samples"]) if goes_on else run.sampler
        given = latent if goes_on else made
        made = SamplerCustom.execute(
            run.model, number == 0 or goes_on, seed, run.cfg, positive, negative, sampler, sigmas, given
        ).args[0]  # fmt: skip
    return made


def continued(sampler, halfway):
    """The SAMPLER, begun at a LATENT's samples, without noise, instead of at those that core makes of latent and noise."""

    @wraps(sampler.sampler_function)
    def sample(model, x, sigmas, **more):
        base = model.inner_model.inner_model
        latent = base.process_latent_in(halfway.to(x))
        x = base.model_sampling.noise_scaling(sigmas[0], torch.zeros_like(latent), latent)
        return sampler.sampler_function(model, x, sigmas, **more)

    going_on = copy(sampler)
    going_on.sampler_function = sample
    return going_on


def check_empty(profile, latent):
    """ValueError for a picture's LATENT where the profile's one step begins at pure noise, at a level below the highest."""
    if profile.knobs.get("start") == "unit_noise" and latent["samples"].count_nonzero():
        raise ValueError(
            f"latent_image is a picture's latent, and {profile.title} makes a picture of pure noise only. Connect an empty latent, or "
            "choose a profile of several steps to change a picture."
        )
