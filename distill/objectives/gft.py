"""Guidance-free training: fine-tuning on captioned pictures that needs no guidance afterwards."""

import torch

from ..huber import distance_knobs
from ..roles import STUDENT, TEACHER
from ..weights import weight_knob
from .objective import Objective, loss_of, scale_knob


def gft(roles, batch, *, scale, weight, distance, huber_c):
    """b S(cond) + (1 - b) T(negative) is the clean latent, with b = 1 / scale, so that S is guided by its own minimiser.

    Chen et al. 2025, arXiv:2501.15420, with b fixed, as a LoRA has no input for it, and the frozen model as the
    unconditional one.
    """
    x, sigma = batch.noisy(batch.time)
    with torch.no_grad():
        unconditional = roles(TEACHER, x, sigma, batch.negative)
    student = roles(STUDENT, x, sigma, batch.cond)
    mixed = student / scale + (1 - 1 / scale) * unconditional
    return loss_of(mixed, batch.clean, batch.path, sigma, weight, distance, huber_c)


GFT = Objective(
    gft, "Guidance-free training (GFT)", "Chen et al. 2025, arXiv:2501.15420",
    "a style or subject from your own captioned pictures, and CFG 1 at once",
    (scale_knob(4.0), weight_knob("min_snr"), *distance_knobs("squared")),
    needs="captioned", sampler="euler", evaluations=lambda knobs: 4,
)  # fmt: skip
