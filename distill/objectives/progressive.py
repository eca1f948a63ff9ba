"""Progressive distillation: the number of steps is halved again and again, each student the next one's teacher."""

import math

import torch

from ...samplers.core import Knob
from ..geometry import target as step_target
from ..huber import distance_knobs
from ..ode import solve
from ..roles import PREVIOUS, STUDENT
from ..weights import weight_knob
from .objective import Objective, loss_of, scale_knob
from .phased import phase


def progressive(roles, batch, *, first, last, scale, weight, distance, huber_c):
    """Salimans & Ho 2022, arXiv:2202.00512, algorithm 2: one step of the student is two of its teacher, at the sampler's levels.

    The teacher of the first stage is the guided model (Meng et al. 2022, arXiv:2210.03142, section 3.2), of every other the
    student as it was at the end of the stage before.
    """
    stage = stage_of({"first": first, "last": last}, batch.progress)
    top, end = phase(batch.time, steps_of(first, last, stage))
    x, sigma = batch.noisy(top)

    def teacher(x, sigma):
        if stage == 0:
            return roles.guided(x, sigma, batch.cond, batch.negative, scale)
        return roles(PREVIOUS, x, sigma, batch.cond)

    with torch.no_grad():
        sigmas = torch.stack([sigma, batch.sigma((top + end) / 2), batch.sigma(end)])
        target = step_target(solve(teacher, x, sigmas), x, sigma, sigmas[-1])
    student = roles(STUDENT, x, sigma, batch.cond)
    return loss_of(student, target, batch.path, sigma, weight, distance, huber_c)


def stages(first, last):
    return math.ceil(math.log2(max(first / last, 1))) + 1


def steps_of(first, last, stage):
    return max(math.ceil(first / 2**stage), last)


def stage_of(knobs, progress):
    """Which stage the run is in, of equal lengths."""
    count = stages(knobs["first"], knobs["last"])
    return min(int(progress * count), count - 1)


PROGRESSIVE = Objective(
    progressive, "Progressive distillation", "Salimans & Ho 2022, arXiv:2202.00512; Meng et al. 2022, arXiv:2210.03142",
    "many steps down to a few where one evaluation of the teacher is dear: two an item",
    (
        Knob("first", 32, "Steps of the first student. The teacher takes twice as many.", min=1, max=512, step=1),
        Knob("last", 4, "Steps of the last student. Use first divided by a power of two.", min=1, max=512, step=1),
        scale_knob(4.0),
        weight_knob("truncated"),
        *distance_knobs("squared"),
    ),
    needs="latents", sampler="euler", evaluations=lambda knobs: 7,
    steps=lambda knobs: knobs["last"], stage=stage_of,
)  # fmt: skip
