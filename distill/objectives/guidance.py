"""Guidance distillation: one evaluation that answers as the guided teacher's two do."""

import torch

from ...samplers.core import Knob
from ..huber import distance_knobs
from ..roles import STUDENT
from ..weights import weight_knob
from .objective import Objective, loss_of, scale_knob


def guidance(roles, batch, *, scale, strength_is_guidance, weight, distance, huber_c):
    """The student's D is the guided teacher's. Meng et al. 2022, arXiv:2210.03142, section 3.1; as a LoRA, Golnari 2023,
    arXiv:2312.05899.

    strength_is_guidance: at a LoRA strength s, drawn once a step from (0, 1], the student learns scale 1 + s (scale - 1). Both
    are linear in s to first order, so the strength becomes a guidance slider.
    """
    x, sigma = batch.noisy(batch.time)
    strength = 1 - batch.draws.shared("strength") if strength_is_guidance else 1.0
    with torch.no_grad():
        target = roles.guided(x, sigma, batch.cond, batch.negative, 1 + strength * (scale - 1))
    student = roles(STUDENT, x, sigma, batch.cond, strength)
    return loss_of(student, target, batch.path, sigma, weight, distance, huber_c)


GUIDANCE = Objective(
    guidance, "Guidance distillation", "Meng et al. 2022, arXiv:2210.03142; Golnari 2023, arXiv:2312.05899",
    "half the evaluations at the same number of steps: CFG 1 gives what the chosen CFG gave",
    (
        scale_knob(4.0),
        Knob("strength_is_guidance", False, "Teach the LoRA to mean guidance by its strength: 0 is CFG 1, 1 is scale. Off, only "
             "strength 1 is trained.", advanced=True),
        weight_knob("v"),
        *distance_knobs("squared"),
    ),
    needs="latents", sampler="euler", evaluations=lambda knobs: 5,
)  # fmt: skip
