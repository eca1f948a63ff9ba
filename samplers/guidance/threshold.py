"""Dynamic thresholding: guided values that have grown too large are brought back."""

import torch

from ..core import Knob, append_dims
from .chain import plain
from .rule import Rule, wide


def quantile_of(values, share):
    """torch.quantile along the last axis, keeping it; that function refuses more than 16 million values."""
    place = share * (values.shape[-1] - 1)
    below = int(place)
    low = values.kthvalue(below + 1, dim=-1, keepdim=True).values
    if place == below:
        return low
    return torch.lerp(low, values.kthvalue(below + 2, dim=-1, keepdim=True).values, place - below)


def pixels(denoised, share):
    """Dynamic thresholding. Saharia et al. 2022 (Imagen), arXiv:2205.11487, section 2.3: pixels from -1 to 1 are left as they are."""
    limit = append_dims(quantile_of(denoised.abs().flatten(1), share).flatten().clamp(min=1), denoised)
    return denoised.clamp(-limit, limit) / limit


def latents(denoised, mimic, share):
    """Each channel's quantile of distances from its mean, at most what it is in ``mimic``. Larger ones are scaled, nothing is cut."""
    flat, other = denoised.flatten(2), mimic.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    size = quantile_of(centred.abs(), share)
    limit = quantile_of((other - other.mean(2, keepdim=True)).abs(), share)
    factor = torch.where(size > limit, limit / torch.where(size > 0, size, 1), 1)
    return (flat + (factor - 1) * centred).view_as(denoised)


def dynamic_threshold(cond, uncond, scale, *, amount=1.0, form="latent", mimic_scale=3.0, quantile=0.995):
    """Dynamic thresholding, for pixels as published, or for latents, which have no range of their own: see ``latents``.

    There the guided prediction takes its range from the one at ``mimic_scale``; with quantile 1 that is what
    sd-dynamic-thresholding does by default (mean, absolute), but on the denoised latent. amount 0 is plain CFG.
    """
    given, other = wide(cond), wide(uncond)
    guided = plain(given, other, scale)
    limited = pixels(guided, quantile) if form == "pixel" else latents(guided, plain(given, other, mimic_scale), quantile)
    return (guided + amount * (limited - guided)).to(cond)


DYNAMIC_THRESHOLD = Rule(
    dynamic_threshold, "Dynamic thresholding", "Saharia et al. 2022 (Imagen), arXiv:2205.11487",
    "high CFG with the contrast of a lower one",
    (
        Knob("amount", 1.0, "Share of the limited prediction. 0 = none, as in plain CFG.", min=0.0, max=1.0, step=0.01),
        Knob("form", "latent", "latent gives each channel at most the range it has at mimic_scale; pixel, as published, brings values "
             "beyond -1 to 1 back and is for models without a VAE.", options=("latent", "pixel")),
        Knob("mimic_scale", 3.0, "The CFG scale whose range the result is to keep, for form latent: one at which colours are right. At "
             "the sampler's own scale nothing changes.", min=0.0, max=100.0, step=0.5),
        Knob("quantile", 0.995, "Share of the values that count as the range. 0.995 in the paper; 1 is the largest value.",
             min=0.5, max=1.0, step=0.001, advanced=True),
    ),
    neutral={"amount": 0.0},
    family="strength",
    spatial=True,
)  # fmt: skip
