"""How noise levels are drawn in training, as laws of the model's time in (0, 1), before any shift: 1 is the noisiest.

Each maps uniform draws u, (B,) float64, through the inverse of its distribution function, so that one u is one time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..samplers.core import Knob, complete, takes


def uniform(u):
    return u


def logit_normal(u, *, mean=0.0, std=1.0):
    """logit(time) is normal. Esser et al. 2024, arXiv:2403.03206, equation 19."""
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def mode(u, *, spread=1.29):
    """Esser et al. 2024, arXiv:2403.03206, equation 20: more of the middle for spread > 0, of the ends below, uniform at 0."""
    return 1 - u - spread * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


def lognormal(u, *, mean=-1.1, std=2.0, levels):
    """log of the VE sigma is normal. Karras et al. 2022, arXiv:2206.00364, table 1; mean and std of Song & Dhariwal 2023,
    arXiv:2310.14189, section 3.5. Levels the model does not have become the nearest that it has."""
    sigma = torch.exp(mean + std * torch.special.ndtri(u))
    return levels.time(sigma / (1 + sigma) if levels.path.is_flow else sigma)


def edges(u, *, steps=4):
    """Only the times at which a sampler of so many even steps evaluates: 1, 1 - 1/steps, ..., 1/steps."""
    return torch.ceil(u * steps) / steps


@dataclass(frozen=True)
class Law:
    """``law(u, levels, **knobs)``: times (B,) float64 in (0, 1] for uniform draws u (B,) in [0, 1)."""

    law: Callable
    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...] = ()

    def __call__(self, u, levels, **knobs):
        settings = complete(self.knobs, knobs)
        if takes(self.law, "levels"):
            settings["levels"] = levels
        return self.law(u.clamp(1e-9, 1 - 1e-9), **settings).clamp(1e-6, 1)


LAWS = {
    "uniform": Law(uniform, "Uniform", "Ho et al. 2020, arXiv:2006.11239", "eps and v models"),
    "logit_normal": Law(
        logit_normal, "Logit-normal", "Esser et al. 2024, arXiv:2403.03206", "flow models",
        (
            Knob("mean", 0.0, "Of the logit of time: above 0 draws more noisy levels.", min=-5.0, max=5.0, step=0.1),
            Knob("std", 1.0, "Of the logit of time: the larger, the more of both ends.", min=0.05, max=5.0, step=0.05),
        ),
    ),
    "mode": Law(
        mode, "Mode", "Esser et al. 2024, arXiv:2403.03206", "flow models, with both ends kept",
        (Knob("spread", 1.29, "How much more of the middle; below 0, of the ends. 0 is uniform.", min=-1.0, max=1.75, step=0.01),),
    ),
    "lognormal": Law(
        lognormal, "Log-normal", "Karras et al. 2022, arXiv:2206.00364; Song & Dhariwal 2023, arXiv:2310.14189",
        "consistency training",
        (
            Knob("mean", -1.1, "Of log sigma: above it draws more noisy levels.", min=-5.0, max=5.0, step=0.1),
            Knob("std", 2.0, "Of log sigma.", min=0.05, max=5.0, step=0.05),
        ),
    ),
    "edges": Law(
        edges, "The sampler's own levels", "Sauer et al. 2024, arXiv:2403.12015", "students that only ever see these levels",
        (Knob("steps", 4, "How many even steps the student will be sampled with.", min=1, max=100, step=1),),
    ),
}  # fmt: skip
