"""Magnitude-aware guidance: the further apart the two predictions are, the weaker."""

import torch

from ..core import Knob, batch_dims
from .chain import plain
from .rule import Rule, wide


def magnitude_aware(cond, uncond, scale, *, alpha=8.0, at):
    """MAMBO-G, 2025, arXiv:2508.03442: scale 1 + (scale - 1) exp(-alpha r), with r = |d_c - d_u| / |d_u| over an item.

    d is predicted noise on VE paths and velocity on flow. alpha 0 is plain CFG.
    """
    given, other = wide(cond), wide(uncond)
    difference, size = (
        torch.linalg.vector_norm(d, dim=batch_dims(d), keepdim=True) for d in (given - other, wide(at.x) - other)
    )
    ratio = difference / torch.where(size > 0, size, 1)  # sigma cancels
    return plain(given, other, 1 + (scale - 1) * torch.exp(-alpha * ratio)).to(cond)


MAGNITUDE_AWARE = Rule(
    magnitude_aware, "Magnitude-aware guidance (MAMBO-G)", "MAMBO-G 2025, arXiv:2508.03442",
    "high CFG without the burst of the first steps",
    (
        Knob("alpha", 8.0, "How fast guidance fades as the two predictions come apart. 0 = not at all, as in plain CFG; 8 in diffusers.",
             min=0.0, max=100.0, step=0.5),
    ),
    neutral={"alpha": 0.0},
    family="strength",
)  # fmt: skip
