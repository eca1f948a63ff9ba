"""Tangential damping: guidance away from what the unconditional prediction has in common with the conditional one."""

import torch

from ..core import batch_dims
from .chain import plain
from .rule import Rule, wide
from .zero_star import STRENGTH


def tcfg(cond, uncond, scale, *, strength=1.0, at):
    """Tangential damping CFG. Kwon et al. 2025, arXiv:2503.18137, on x - denoised, which is the score but for its length.

    The unconditional score u is projected on the first right singular vector of the rows u and c. In closed form, with (a, b) the
    first eigenvector of their 2 x 2 Gram matrix: a (a u + b c). strength 0 is plain CFG.
    """
    x, guided = wide(at.x), plain(wide(cond), wide(uncond), scale)
    c, u = x - wide(cond), x - wide(uncond)
    dims = batch_dims(x)
    excess = (u * u).sum(dims, keepdim=True) - (c * c).sum(dims, keepdim=True)
    dot = (c * u).sum(dims, keepdim=True)
    radius = torch.hypot(excess, 2 * dot)
    some = torch.where(radius > 0, radius, 1)  # radius 0: of equal length at right angles, no direction comes first
    aa, ab = torch.where(radius > 0, (1 + excess / some) / 2, 1), dot / some
    return (guided + (scale - 1) * strength * ((aa - 1) * u + ab * c)).to(cond)


TCFG = Rule(
    tcfg, "Tangential damping (TCFG)", "Kwon et al. 2025, arXiv:2503.18137",
    "prompts and negative prompts that pull in different directions",
    (STRENGTH,),
    neutral={"strength": 0.0},
    family="projected",
)  # fmt: skip
