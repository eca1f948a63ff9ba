"""How discriminator guidance is wired into ComfyUI."""

import copy

import torch

from ..samplers.guidance.discriminator import correction
from . import host

LEVELS = 256  # noise levels that a schedule is described by


def facts_of(model):
    """What a discriminator must have in common with the model that it corrects: channels, prediction type, latent format."""
    latent_format = model.get_model_object("latent_format")
    path = host.path_of(model.get_model_object("model_sampling"))
    return {
        "channels": latent_format.latent_channels, "prediction": path.prediction, "latent_format": type(latent_format).__name__,
    }  # fmt: skip


def noise_levels(model):
    """Noise levels as densely as the model's own schedule has them, (LEVELS,)."""
    sampling = model.get_model_object("model_sampling")
    return torch.tensor([float(sampling.percent_to_sigma((i + 0.5) / LEVELS)) for i in range(LEVELS)])


def latents_of(model, name, latent):
    """The samples of a LATENT on the scale that the model works on. ValueError where they are not this model's."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(f"{name} holds several latents packed into one (video with audio): a discriminator is of one kind.")
    latent_format = model.get_model_object("latent_format")
    if latent_format.latent_dimensions == 3 and samples.ndim == 4:
        samples = samples.unsqueeze(2)  # a picture is a video of one frame, as in core
    if samples.shape[1] != latent_format.latent_channels:
        raise ValueError(
            f"{name} has {samples.shape[1]} channels and this model works on {latent_format.latent_channels}: sample it with "
            "this model, or encode the pictures with the VAE that belongs to it."
        )
    return model.model.process_latent_in(samples.float())


def with_discriminator(model, discriminator, weight, boost, start_percent, end_percent):
    """A clone whose every prediction gets the ``correction``, whatever guided it. At weight 0 nothing is hooked.

    Not a function after the CFG step: some guiders, as DualCFGGuider, scale that step's result, and would scale the correction.
    """
    if weight == 0:
        return model.clone()

    def begin(run):
        if run["latent_shapes"] is not None and len(run["latent_shapes"]) > 1:
            raise ValueError(
                "latent_image holds several latents packed into one (video with audio), which a discriminator cannot look at: "
                "remove Discriminator Guidance, or sample one of them."
            )
        sampling = run["guider"].model_patcher.get_model_object("model_sampling")
        window = [float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent)]
        with torch.inference_mode(False):  # a network that autograd may pass through
            network = copy.deepcopy(discriminator).to(run["guider"].model_patcher.load_device)
        return network, host.path_of(sampling), window

    def predict_noise(executor, x, timestep, model_options, seed):
        denoised = executor(x, timestep, model_options, seed)
        network, path, (first, last) = host.run_state(model_options["transformer_options"], token)
        sigma = timestep.expand(len(x))
        inside = (sigma <= first) & (sigma >= last)
        if not inside.any():
            return denoised
        return denoised + correction(network, x, sigma, path, weight=weight * inside, boost=boost).to(denoised)

    model, token = host.with_run_state(model, begin)
    model.add_wrapper_with_key(host.WrappersMP.PREDICT_NOISE, token, predict_noise)
    return model
