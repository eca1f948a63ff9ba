"""DDCM, editing without inversion. Xu, Huang, Pan, Ma and Chai 2023 (InfEdit), arXiv:2312.04965.

The noise that leads from x_source = alpha x0 + sigma n to the picture x0 is n itself, whatever the network says, so nothing has to be
inverted. The network is wrong about it by alpha (x0 - D_source) / sigma, and the same is taken off its error about the edit, which
shares n. Written in clean latents this is ``edited = x0 + D_target - D_source``, on every path and finite at sigma 1 of a flow.
"""

from itertools import pairwise

import torch

from ..core import check_sigmas, denoiser


def sample_ddcm(target, source, x0, sigmas, noise, noise_sampler, *, path, extra_args=None, callback=None):
    """The edit of x0 (B, C, ...), after one call of each denoiser at every sigma but the last.

    target, source: denoisers of the prompts that the edit, and x0, are to be described by. noise: like x0, of the first level, shared
    by both as that of the later ones, which ``noise_sampler(sigma, sigma_next)`` gives. Where the two denoisers agree, x0 comes out
    exactly. callback gets the edit so far as "denoised". ValueError for sigmas that do not fall.
    """
    check_sigmas(sigmas)
    target, source = denoiser(target, extra_args), denoiser(source, extra_args)
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    edited, sigmas, last = x0, sigmas.to(x0), len(sigmas) - 2
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        alpha = path.alpha(sigma)
        x, x_source = (alpha * clean + sigma * noise for clean in (edited, x0))
        edited = x0 + (target(x, sigma) - source(x_source, sigma))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": edited})
        if i < last:
            noise = noise_sampler(sigma, sigma_next)
    return edited
