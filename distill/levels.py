"""A model's noise levels by its time: 0 clean, 1 the noisiest level it was trained on."""

from dataclasses import dataclass

import torch

from ..samplers.path import Path
from ..samplers.schedules.timesteps import levels_between


@dataclass(frozen=True)
class Levels:
    """table: the noise levels of the model's T timesteps, (T,) rising, float64 on the CPU; entry k is time (k + 1) / T.

    A flow's shift is part of its table. Between entries even in log sigma, on flow in sigma; below the first, linear to 0.
    """

    path: Path
    table: torch.Tensor

    @classmethod
    def between(cls, path, sigma_min, sigma_max, count=1000):
        """Of a model without timesteps: even in log sigma, on flow in sigma."""
        if path.is_flow:
            return cls(path, torch.linspace(sigma_max / count, sigma_max, count, dtype=torch.float64))
        low, high = torch.tensor([sigma_min, sigma_max], dtype=torch.float64).log()
        return cls(path, torch.linspace(low, high, count, dtype=torch.float64).exp())

    @property
    def sigma_max(self):
        return self.table[-1]

    def sigma(self, time):
        """Noise levels, float64 on the CPU, at times from 0 to 1."""
        entries = time.cpu().double() * len(self.table) - 1
        above = levels_between(entries.clamp(min=0), self.path, self.table)
        return torch.where(entries < 0, self.table[0] * (entries + 1), above).clamp(max=self.sigma_max)

    def time(self, sigma):
        """The inverse of ``sigma``: 1 above the noisiest level."""
        sigma = sigma.cpu().double()
        values, at = (self.table, sigma) if self.path.is_flow else (self.table.log(), sigma.log())
        at = at.clamp(values[0], values[-1])
        upper = torch.searchsorted(values, at).clamp(1, len(values) - 1)
        entry = upper - 1 + (at - values[upper - 1]) / (values[upper] - values[upper - 1])
        return (entry + 1) / len(values) * (sigma / self.table[0]).clamp(max=1)

    def grid(self, n):
        """n + 1 falling noise levels, even in time, from the noisiest to 0: the sigmas that n steps sample at."""
        return self.sigma(torch.linspace(1, 0, n + 1, dtype=torch.float64))
