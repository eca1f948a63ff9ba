"""CFG-Cache of FasterCache: the guidance reused between steps, low frequencies weighed up early in a run, high ones late."""

import torch

from ...core import Knob
from .periodic import EVERY, WARM_UP, Periodic
from .reuse import Latest, Reuse
from .skip import Skip


class LowHigh(Reuse):
    """The last difference with one of its two parts enlarged: (1 + alpha_low) low + high before the switch, low + (1 + alpha_high) high
    from there on. Lv et al. 2024, arXiv:2410.19355, section 3.3, equation 11. With both alphas 0 it is ``Reuse``."""

    def __init__(self, alpha_low, alpha_high, switch):
        super().__init__(whole=False)
        self.alpha_low, self.alpha_high, self.switch = alpha_low, alpha_high, switch
        self.low = Latest()

    def observe(self, moment, cond, difference, items):
        super().observe(moment, cond, difference, items)
        self.low.write(moment.joined([low(part) for part in moment.parts(difference)]), items, len(moment.x))

    def difference(self, moment, cond):
        both, low = self.latest.value, self.low.value
        if moment.step < self.switch * moment.steps:
            return both + self.alpha_low * low
        return both + self.alpha_high * (both - low)


def low(latent):
    """The part of latent (B, C, ..., H, W) with at most min(H, W) // 5 waves across a picture, as the authors' code splits it.

    Of (B, C, L), which has no picture, along L.
    """
    axes = tuple(range(max(2, latent.ndim - 2), latent.ndim))
    sizes = [latent.shape[axis] for axis in axes]
    waves = torch.meshgrid(*(torch.fft.fftfreq(size, 1 / size, device=latent.device) for size in sizes), indexing="ij")
    mask = sum(wave.square() for wave in waves) <= (min(sizes) // 5) ** 2
    wide = latent.to(torch.promote_types(latent.dtype, torch.float32))  # half precision has no FFT on the CPU
    return torch.fft.ifftn(torch.fft.fftn(wide, dim=axes) * mask, dim=axes).real.to(latent)


LOW_HIGH = Skip(
    "Low and High Frequencies", "FasterCache's CFG-Cache, Lv et al. 2024, arXiv:2410.19355, section 3.3",
    "video models, as published",
    (
        EVERY, WARM_UP,
        Knob("alpha_low", 0.2, "How much to enlarge the coarse part of a reused difference, before the switch. 0: as it was.",
             min=0.0, max=1.0, step=0.01),
        Knob("alpha_high", 0.2, "How much to enlarge its fine part, after the switch. 0: as it was.", min=0.0, max=1.0, step=0.01),
        Knob("switch", 0.5, "Share of the run after which the fine part is enlarged instead of the coarse one.",
             min=0.0, max=1.0, step=0.01, advanced=True),
    ),
    neutral={"every": 1},
    policy=lambda settings, to_sigma: Periodic(settings["every"], settings["warm_up"]),
    forecast=lambda settings: LowHigh(settings["alpha_low"], settings["alpha_high"], settings["switch"]),
)  # fmt: skip
