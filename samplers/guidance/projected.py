"""Adaptive projected guidance: the parts of the guidance along and across the prediction are treated differently."""

import torch

from ..core import Knob, batch_dims
from .rule import Rule, wide


class RunningDifference:
    """The momentum of one run: difference + momentum * what it was."""

    def __init__(self):
        self.value = None

    def update(self, difference, momentum):
        self.value = difference if self.value is None else difference + momentum * self.value
        return self.value


def apg(cond, uncond, scale, *, eta=0.0, norm_threshold=15.0, momentum=-0.5, state=None):
    """Adaptive projected guidance. Sadat et al. 2024, arXiv:2410.02416, algorithm 1.

    scale is the paper's, which is plain CFG's; core's APG node acts as if it were one larger. eta = 1, norm_threshold = 0
    and momentum = 0 is plain CFG. state carries the momentum from call to call; without one, every call is the first.
    """
    along = wide(cond)
    difference = along - wide(uncond)
    dims = batch_dims(cond)
    if state is not None:
        difference = state.update(difference, momentum)
    if norm_threshold > 0:
        norm = torch.linalg.vector_norm(difference, dim=dims, keepdim=True)
        difference = difference * (norm_threshold / norm.clamp(min=norm_threshold))
    square = along.square().sum(dims, keepdim=True)
    parallel = along * ((difference * along).sum(dims, keepdim=True) / torch.where(square > 0, square, 1))
    orthogonal = difference - parallel
    return (along + (scale - 1) * (orthogonal + eta * parallel)).to(cond)


APG = Rule(
    apg, "Adaptive projected guidance (APG)", "Sadat et al. 2024, arXiv:2410.02416",
    "high CFG without burnt colours",
    (
        Knob("eta", 0.0, "Share to keep of the guidance that points along the prediction, the part that saturates. "
             "0 = none, as published; 1 = all, as in plain CFG.", min=0.0, max=1.0, step=0.01),
        Knob("norm_threshold", 15.0, "Longest guidance allowed, as a norm over the whole latent; it grows with latent "
             "size. 0 = no limit, as in plain CFG. The paper uses 2.5 to 20; 15 is its value for SDXL.",
             min=0.0, max=1000.0, step=0.5),
        Knob("momentum", -0.5, "Share of earlier steps' guidance to add. 0 = none, as in plain CFG. Negative pushes "
             "away from it; the paper uses -0.75 to -0.5.", min=-0.999, max=0.999, step=0.001),
    ),
    neutral={"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0},
    family="projected",
    new_state=lambda knobs: RunningDifference() if knobs["momentum"] else None,
)  # fmt: skip
