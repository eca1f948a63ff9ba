"""Phased regression: the student makes in one step what the teacher makes in several, between fixed noise levels."""

import torch

from ...samplers.core import Knob
from ..geometry import target as step_target
from ..huber import distance_knobs
from ..ode import SOLVER_KNOB, solve
from ..roles import STUDENT
from ..weights import weight_knob
from .objective import Objective, loss_of, phases_knob, scale_knob

NEAREST = 0.02  # to a phase's end, as a share of it: closer, D of the remaining step would be lost in rounding


def phased(roles, batch, *, phases, substeps, at_edge, scale, solver, weight, distance, huber_c):
    """The student's D is the one whose single step to the end of the phase lands where the guided teacher gets in ``substeps``.

    Rectified Diffusion (Phased), Wang et al. 2024, arXiv:2410.07303: the student is never its own target, so it is
    as stable as any regression. at_edge: share of items at the start of their phase, where sampling evaluates.
    """
    top, end = phase(batch.time, phases)
    share = ((batch.time - end) * phases).clamp(min=NEAREST)
    share = torch.where(batch.draws.uniform("edge") < at_edge, 1.0, share)
    time = torch.where(share >= 1, top, end + share / phases)
    x, sigma = batch.noisy(time)
    with torch.no_grad():
        sigmas = torch.stack([batch.sigma(torch.lerp(time, end, i / substeps)) for i in range(substeps)] + [batch.sigma(end)])
        y = solve(lambda x, sigma: roles.guided(x, sigma, batch.cond, batch.negative, scale), x, sigmas, solver)
        target = step_target(y, x, sigma, sigmas[-1])
    student = roles(STUDENT, x, sigma, batch.cond)
    return loss_of(student, target, batch.path, sigma, weight, distance, huber_c)


def phase(time, phases):
    """(start, end) of the phase of each time, both as times; exact multiples of 1 / phases."""
    upper = torch.ceil(time * phases).clamp(1, phases)
    return upper / phases, (upper - 1) / phases


PHASED = Objective(
    phased, "Phased regression", "Wang et al. 2024, arXiv:2410.07303; Salimans & Ho 2022, arXiv:2202.00512",
    "4 to 8 steps, and the steadiest of all; at one step it averages",
    (
        phases_knob(4),
        Knob("substeps", 8, "Steps of the teacher to one of the student.", min=1, max=64, step=1),
        Knob("at_edge", 0.5, "Share of the items at the start of a phase, where sampling evaluates; the others anywhere in it.",
             min=0.0, max=1.0, step=0.05, advanced=True),
        scale_knob(4.0),
        SOLVER_KNOB,
        weight_knob("truncated"),
        *distance_knobs("squared"),
    ),
    needs="latents", sampler="euler",
    evaluations=lambda knobs: 2 * knobs["substeps"] * (2 if knobs["solver"] == "heun" else 1) + 3,
    steps=lambda knobs: knobs["phases"],
)  # fmt: skip
