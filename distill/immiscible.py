"""Immiscible diffusion by nearest neighbour: each clean latent gets the nearest of several noises, which untangles the paths.

Li et al. 2024, arXiv:2406.12303; the nearest of k, Li et al. 2025, arXiv:2505.18521. Not for pairs, whose noise is their own.
"""


def nearest(clean, candidates):
    """The one of candidates (k, C, ..., H, W) that is nearest to clean (C, ..., H, W), by its squared distance."""
    return candidates[(candidates - clean).square().flatten(1).sum(1).argmin()]
