"""What a training objective is to users, and the knobs that several share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...samplers.core import Knob, complete
from ..huber import DISTANCES
from ..weights import weight as weigh


@dataclass(frozen=True)
class Objective:
    """A training objective as users meet it: ``loss(roles, batch, *, <knobs>) -> (B,)``, one number an item, not averaged.

    roles: see ``roles.Roles``. batch: see ``batch.Batch``. Gradients reach the student alone. needs: "latents" (any clean ones),
    "pairs" (of noise and where the teacher takes it) or "captioned" (real ones with their captions). sampler: how the student
    is to be sampled, core's name. evaluations(knobs): forwards a step, an item; a trained pass counts as 3. steps(knobs): how many
    sampling steps it teaches, None where any number will do.
    stage(knobs, progress): a whole number; where it rises, the student becomes the role PREVIOUS.
    """

    loss: Callable
    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...]
    needs: str
    sampler: str
    evaluations: Callable[[dict], float]
    steps: Callable[[dict], int | None] = lambda knobs: None
    stage: Callable[[dict, float], int] = lambda knobs, progress: 0

    def __call__(self, roles, batch, **knobs):
        return self.loss(roles, batch, **complete(self.knobs, knobs))


def scale_knob(default):
    return Knob(
        "scale",
        default,
        "Classifier-free guidance of the teacher that the student learns. 1 = none.",
        min=1.0,
        max=30.0,
        step=0.1,
    )


def phases_knob(default):
    return Knob(
        "phases", default, "Parts that the way from noise to picture is cut into: the student makes each in one step, so this is "
        "its number of steps.", min=1, max=64, step=1,
    )  # fmt: skip


def loss_of(student, target, path, sigma, weight, distance, huber_c):
    """(B,) weighted distances of D, in float32 or wider: half precision has too few digits for small ones."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return weigh(weight, path, sigma).to(dtype) * DISTANCES[distance](student.to(dtype) - target.to(dtype), huber_c)
