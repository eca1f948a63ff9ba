"""What one optimiser step learns from: clean latents, noise, levels and conditions, all drawn by counter."""

from dataclasses import dataclass, field

import torch

from ..samplers.core import append_dims
from .draws import Draws, generator
from .geometry import noisy, start
from .immiscible import nearest
from .laws import LAWS
from .levels import Levels


@dataclass(frozen=True)
class Batch:
    """Items of one step, or of a part of it.

    clean: (B, C, ..., H, W) clean latents on the model's own scale; of pairs, where the teacher takes the noise. noise: like
    clean. time: (B,) float64 in (0, 1], by the run's law. cond, negative: conditions of the items, with ``[indices]``.
    draws: further randomness. progress: share of the run that is over. perturbation: share of further noise in what the
    student sees, Ning et al. 2023, arXiv:2301.11706 (0 = none; they take 0.1), for targets that are data. shown: the times (B,) of
    each ``noisy`` so far: objectives choose others than ``time``.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor
    levels: Levels
    cond: object
    negative: object
    draws: Draws
    progress: float = 0.0
    perturbation: float = 0.0
    shown: list = field(default_factory=list)

    @property
    def path(self):
        return self.levels.path

    def sigma(self, time):
        """Noise levels (B,) like clean at times (B,)."""
        return self.levels.sigma(time).to(self.clean)

    def noisy(self, time, noise=None):
        """(x, sigma) of the items at times (B,). At time 1, what sampling starts from: on VE paths that has no signal."""
        self.shown.append(time)
        noise, sigma = self.noise if noise is None else noise, self.sigma(time)
        if self.perturbation:
            noise = noise + self.perturbation * self.draws.normal("perturbation", noise)
        first = append_dims((time >= 1).to(self.clean.device), self.clean)
        return torch.where(first, start(self.path, noise, sigma), noisy(self.path, self.clean, noise, sigma)), sigma


class Cycle:
    """Conditions for any number of latents: latent i has condition i, counted on from the first again after the last."""

    def __init__(self, cond, count):
        self.cond, self.count = cond, count

    def __getitem__(self, indices):
        return self.cond[[i % self.count for i in indices]]


class Data:
    """Batches from a store of latents, each used once before any is used again.

    latents: ``latents[i] -> (C, ..., H, W)`` and ``len``. paired: they are ``pairs.Pairs``, and each has its own ``noise(i)``.
    cond: one condition per latent, ``cond[indices]``. negative: one condition, ``negative[[0, 0, ...]]``. size: items a step.
    law, law_knobs: of the times, see LAWS. immiscible: how many noises to choose each from; 1 = none. perturbation: as in Batch.
    """

    def __init__(
        self, latents, cond, negative, levels, *, seed, size, paired=False, law="uniform", law_knobs=None, immiscible=1, perturbation=0.0,
        device="cpu",
    ):  # fmt: skip
        if len(latents) == 0:
            raise ValueError("there are no latents to learn from: make some with the teacher, or give your own.")
        self.latents, self.cond, self.negative, self.levels, self.device = latents, cond, negative, levels, device
        self.seed, self.size, self.perturbation, self.candidates = seed, size, perturbation, immiscible
        self.paired, self.law, self.law_knobs = paired, LAWS[law], law_knobs or {}
        self.order = None, None  # (epoch, its order)

    def batch(self, step, items, progress=0.0):
        """Items, places from 0 to size - 1, of this step's batch."""
        draws = Draws(self.seed, step, tuple(items))
        chosen = [self.index(step * self.size + item) for item in items]
        clean = torch.stack([self.latents[i] for i in chosen]).to(self.device, torch.float32)
        return Batch(
            clean, self.noise(chosen, clean, draws), self.law(draws.uniform("time"), self.levels, **self.law_knobs), self.levels,
            self.cond[chosen], self.negative[[0] * len(chosen)], draws, progress, self.perturbation,
        )  # fmt: skip

    def index(self, count):
        """The count-th latent to use, in an order drawn anew for every round through them."""
        epoch, place = divmod(count, len(self.latents))
        if self.order[0] != epoch:
            self.order = epoch, torch.randperm(len(self.latents), generator=generator(self.seed, "order", epoch)).tolist()
        return self.order[1][place]

    def noise(self, chosen, clean, draws):
        if self.paired:
            return torch.stack([self.latents.noise(i) for i in chosen]).to(clean)
        if self.candidates == 1:
            return draws.normal("noise", clean)
        several = [draws.normal(f"noise {i}" if i else "noise", clean) for i in range(self.candidates)]
        return torch.stack([nearest(item, torch.stack(noises)) for item, *noises in zip(clean, *several)])
