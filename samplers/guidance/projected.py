"""Projected guidance: rules that treat the parts of the guidance along and across the prediction differently."""

import torch

from ..core import batch_dims


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
    wide = torch.float64 if cond.device.type in ("cpu", "cuda") else torch.float32  # others may lack it
    along = cond.to(wide)
    difference = along - uncond.to(wide)
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
