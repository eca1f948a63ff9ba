"""Randomness by counter: what is drawn depends on (seed, purpose, step, item) and on nothing else.

So a run resumes without any generator to restore, and the size of a micro-batch changes no item. Drawn on the CPU: the same on
every device. torch's CPU generator keeps 32 bits of a seed, so that among a million streams about a hundred coincide: harmless,
as two items of different steps then share one noise.
"""

from dataclasses import dataclass
from hashlib import blake2b

import torch


def generator(seed, purpose, step=0, item=0):
    """A torch.Generator for this use of randomness. seed, step and item are whole numbers, purpose is a name."""
    name = f"{seed}/{purpose}/{step}/{item}".encode()
    return torch.Generator().manual_seed(int.from_bytes(blake2b(name, digest_size=4).digest(), "little"))


@dataclass(frozen=True)
class Draws:
    """The draws of one micro-batch: ``items`` are the places of its items in the whole batch of this step."""

    seed: int
    step: int
    items: tuple[int, ...]

    def normal(self, purpose, like):
        """Standard normal values of like's shape (B, ...), dtype and device, drawn in float32."""
        generators = (generator(self.seed, purpose, self.step, item) for item in self.items)
        return torch.stack([torch.randn(like.shape[1:], generator=each) for each in generators]).to(like)

    def uniform(self, purpose):
        """(B,) float64 on the CPU, in [0, 1)."""
        return torch.tensor([self._uniform(purpose, item) for item in self.items], dtype=torch.float64)

    def shared(self, purpose):
        """One float in [0, 1) for every item of the step, whichever micro-batch it is in."""
        return self._uniform(purpose, "all")

    def _uniform(self, purpose, item):
        return torch.rand((), generator=generator(self.seed, purpose, self.step, item), dtype=torch.float64).item()
