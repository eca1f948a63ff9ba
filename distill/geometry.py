"""Steps and noise in terms of D, the predicted clean latent: the same formulas on every path.

x = alpha D + sigma eps and dx/dsigma = (x - D) / sigma, so that an Euler step (DDIM, Song et al. 2020, arXiv:2010.02502) from
sigma s to t is (t/s) x + (1 - t/s) D. Latents (B, C, ..., H, W), noise levels (B,).
"""

import torch

from ..samplers.core import append_dims


def noisy(path, clean, noise, sigma):
    """alpha clean + sigma noise."""
    sigma = append_dims(sigma, clean)
    return path.alpha(sigma) * clean + sigma * noise


def start(path, noise, sigma_max):
    """What sampling starts from at the noisiest level, as ComfyUI's ``noise_scaling`` makes it with max_denoise.

    eps, v and EDM models start from sqrt(1 + sigma^2) noise, as if unit data were in it.
    """
    sigma_max = append_dims(sigma_max, noise)
    return (torch.hypot(sigma_max, torch.ones_like(sigma_max)) if path.prediction in ("eps", "v", "edm") else sigma_max) * noise


def jump(x, sigma, sigma_next, denoised):
    """The Euler step from sigma to sigma_next along a fixed D. At sigma_next 0 it is D."""
    ratio = append_dims(sigma_next / sigma, x)
    return ratio * x + (1 - ratio) * denoised


def target(y, x, sigma, sigma_next):
    """The D whose Euler step from (x, sigma) to sigma_next lands on y: the inverse of ``jump``, for sigma_next < sigma."""
    ratio = append_dims(sigma_next / sigma, x)
    return (y - ratio * x) / (1 - ratio)


def snr(path, sigma):
    """(alpha / sigma)^2."""
    return (path.alpha(sigma) / sigma) ** 2
