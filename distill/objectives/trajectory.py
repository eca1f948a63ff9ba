"""Trajectory consistency: one answer along each phase of the teacher's path, so that several plain steps join up."""

import math

import torch

from ..geometry import jump
from ..geometry import target as step_target
from ..huber import distance_knobs
from ..ode import SOLVER_KNOB
from ..roles import STUDENT
from ..weights import weight_knob
from .consistency import LEVEL_KNOBS, TOWARD_KNOB, held_fixed, levels_at, pair_loss, teacher_step
from .objective import Objective, phases_knob, scale_knob


def trajectory(roles, batch, *, phases, first, last, scale, solver, toward, weight, distance, huber_c):
    """As consistency, but both are compared at the end of their phase, where their single steps land.

    Compared as the D of that step: in x the difference is (1 - end / sigma) times as large, and vanishes near the end. PCM, Wang
    et al. 2024, arXiv:2405.18407; CTM, Kim et al. 2023, arXiv:2310.02279, and TCD, Zheng et al. 2024,
    arXiv:2402.19159, with the end fixed at the phase's, as a LoRA has no input for it. One phase is consistency.
    """
    a_phase = math.ceil(levels_at(batch.progress, first, last) / phases)
    n = a_phase * phases
    upper = torch.ceil(batch.time * n).clamp(1, n)
    x, sigma = batch.noisy(upper / n)
    sigma_next, end = batch.sigma((upper - 1) / n), batch.sigma(torch.floor((upper - 1) / a_phase) / phases)
    with torch.no_grad():
        x_next = teacher_step(roles, batch, x, sigma, sigma_next, scale, solver)
        denoised = held_fixed(roles, toward, x_next, sigma_next, sigma, batch.cond)
        landed = jump(x_next, torch.where(sigma_next > 0, sigma_next, 1), end, denoised)
        target = step_target(landed, x, sigma, end)
    student = roles(STUDENT, x, sigma, batch.cond)
    return pair_loss(student, target, batch.path, sigma, sigma_next, weight, distance, huber_c)


TRAJECTORY = Objective(
    trajectory, "Trajectory consistency (PCM, CTM, TCD)",
    "Wang et al. 2024, arXiv:2405.18407; Kim et al. 2023, arXiv:2310.02279; Zheng et al. 2024, arXiv:2402.19159",
    "2 to 8 plain steps from one small step of the teacher an item",
    (
        phases_knob(4), *LEVEL_KNOBS, scale_knob(7.5), SOLVER_KNOB, TOWARD_KNOB, weight_knob("x0", ("gap",)), *distance_knobs("huber"),
    ),
    needs="latents", sampler="euler", evaluations=lambda knobs: 8 if knobs["solver"] == "heun" else 6,
    steps=lambda knobs: knobs["phases"],
)  # fmt: skip
