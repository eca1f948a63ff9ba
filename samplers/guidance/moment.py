"""Where a sampling run stands at one prediction: what a guidance rule may ask beside the predictions themselves."""

import math
from dataclasses import dataclass, replace

import torch

from ..core import append_dims, to_d
from ..path import Path


@dataclass(frozen=True)
class Moment:
    """x (B, C, ..., H, W) is the noisy latent, sigma (B,) its noise level; step counts from 0 in a run of ``steps`` steps.

    shapes are those of the latents that x packs into (B, 1, N), video with audio for one; None where x is a latent itself.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    step: int
    steps: int
    path: Path | None
    shapes: tuple | None = None

    def d(self, denoised):
        """A prediction as the paper's output: eps on VE paths, velocity on flow. (B, ...), as x."""
        return to_d(self.x, self.sigma, denoised)

    def velocity(self, denoised):
        """A prediction as a velocity, the same kind of thing on every model: on flow d itself, elsewhere v, predicted noise less
        sigma times the data, of arbitrary length. Where the path is not known it is d too.
        """
        sigma, d = append_dims(self.sigma, denoised), self.d(denoised)
        if self.path is None or self.path.is_flow:
            return d
        return d - (1 if self.path.prediction == "cosmos" else sigma) * denoised

    def time(self):
        """(B,), from 1 at the noisiest level the model was trained on to 0."""
        return self.path.time(self.sigma)

    def parts(self, latent):
        """The latents in this one, each (B, C, ..., H, W): what a rule about places or frequencies works on."""
        if self.shapes is None:
            return [latent]
        sizes = [math.prod(shape[1:]) for shape in self.shapes]
        pieces = latent.reshape(len(latent), -1).split(sizes, dim=1)
        return [piece.reshape(len(latent), *shape[1:]) for piece, shape in zip(pieces, self.shapes)]

    def split(self):
        """The moment of each of those latents."""
        return [self] if self.shapes is None else [replace(self, x=part, shapes=None) for part in self.parts(self.x)]

    def joined(self, parts):
        """What ``parts`` took apart."""
        if self.shapes is None:
            return parts[0]
        return torch.cat([part.reshape(len(part), 1, -1) for part in parts], dim=2)
