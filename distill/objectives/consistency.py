"""Consistency distillation: the student gives one answer along the whole of the teacher's path."""

import math

import torch

from ...samplers.core import Knob, append_dims
from ..geometry import noisy
from ..huber import distance_knobs
from ..ode import SOLVER_KNOB, solve
from ..roles import EMA, STUDENT
from ..weights import weight_knob
from .objective import Objective, loss_of, scale_knob


def consistency(roles, batch, *, first, last, teacher, scale, solver, eta, toward, weight, distance, huber_c):
    """The student's D at a level is its own D, held fixed, one small step of the guided teacher further on.

    Song et al. 2023, arXiv:2303.01469, algorithm 2; on latents, guided, as a LoRA: LCM, Luo et al. 2023, arXiv:2310.04378 and
    arXiv:2311.05556. iCT's changes (Song & Dhariwal 2023, arXiv:2310.14189) are the growing number of levels, weight gap,
    the Huber distance, toward student, and teacher none: the step then re-noises the clean latent, which must be data.
    eta: SCott, Liu et al. 2024, arXiv:2403.01505: the teacher's step is one of an SDE.
    """
    n = levels_at(batch.progress, first, last)
    upper = torch.ceil(batch.time * n).clamp(1, n)
    x, sigma = batch.noisy(upper / n)
    sigma_next = batch.sigma((upper - 1) / n)
    with torch.no_grad():
        if teacher == "none":
            x_next = noisy(batch.path, batch.clean, batch.noise, sigma_next)
        else:
            x_next = teacher_step(roles, batch, x, sigma, sigma_next, scale, solver, eta)
        target = held_fixed(roles, toward, x_next, sigma_next, sigma, batch.cond)
    student = roles(STUDENT, x, sigma, batch.cond)
    return pair_loss(student, target, batch.path, sigma, sigma_next, weight, distance, huber_c)


def levels_at(progress, first, last):
    """Steps that the noise levels are cut into: doubles from first to last in equal parts of the run. iCT, section 3.4."""
    doublings = math.ceil(math.log2(max(last / first, 1)))
    return min(first * 2 ** int(progress * (doublings + 1)), last) if doublings else last


def teacher_step(roles, batch, x, sigma, sigma_next, scale, solver, eta=0.0):
    """One step of the guided teacher to sigma_next (B,), which may be 0. With eta, of the SDE: DDIM's eta."""

    def guided(x, sigma):
        return roles.guided(x, sigma, batch.cond, batch.negative, scale)

    if eta == 0:
        return solve(guided, x, torch.stack([sigma, sigma_next]), solver)
    denoised = guided(x, sigma)
    return noisy_jump(batch.path, x, sigma, sigma_next, denoised, eta, batch.draws.normal("eta", x))


def noisy_jump(path, x, sigma, sigma_next, denoised, eta, noise):
    """DDIM's step with eta, Song et al. 2020, arXiv:2010.02502, equations 12 and 16: 0 is ``jump``, 1 the ancestral step."""
    # The share of sigma_next that is new noise, from the ratio of the VE levels.
    ratio = sigma_next * path.alpha(sigma) / (path.alpha(sigma_next) * sigma)
    new = append_dims(eta * (1 - ratio**2).clamp(min=0).sqrt(), x)
    old = (x - append_dims(path.alpha(sigma), x) * denoised) / append_dims(sigma, x)
    return noisy(path, denoised, (1 - new**2).clamp(min=0).sqrt() * old + new * noise, sigma_next)


def held_fixed(roles, toward, x, sigma, sigma_before, cond):
    """D at (x, sigma) of the student or of its average. Where sigma is 0 that is x; the network is asked at sigma_before there."""
    ends = sigma == 0
    if bool(ends.all()):
        return x
    denoised = roles(EMA if toward == "average" else STUDENT, x, torch.where(ends, sigma_before, sigma), cond)
    return torch.where(append_dims(ends, x), x, denoised)


def pair_loss(student, target, path, sigma, sigma_next, weight, distance, huber_c):
    if weight == "gap":  # iCT, section 3.1
        return loss_of(student, target, path, sigma, "x0", distance, huber_c) / (sigma - sigma_next)
    return loss_of(student, target, path, sigma, weight, distance, huber_c)


LEVEL_KNOBS = (
    Knob("first", 5, "Noise levels at the start of the run. They double until there are ``last``. The same as last = constant.",
         min=1, max=1280, step=1, advanced=True),
    Knob("last", 40, "Noise levels at its end: more is nearer to the teacher, and slower.", min=1, max=1280, step=1),
)  # fmt: skip
TOWARD_KNOB = Knob(
    "toward", "student", "What is held fixed as the target: the student of this moment, or its moving average.",
    options=("student", "average"), advanced=True,
)  # fmt: skip

CONSISTENCY = Objective(
    consistency, "Consistency (LCM)",
    "Luo et al. 2023, arXiv:2310.04378; Song & Dhariwal 2023, arXiv:2310.14189; Liu et al. 2024, arXiv:2403.01505",
    "1 to 8 steps with re-noising, any number of them",
    (
        *LEVEL_KNOBS,
        Knob("teacher", "guided", "Whose step is followed: the guided teacher's, or none, which learns from real latents alone.",
             options=("guided", "none"), advanced=True),
        scale_knob(7.5),
        SOLVER_KNOB,
        Knob("eta", 0.0, "Fresh noise in the teacher's step, as SCott has it. 0 = none, 1 = ancestral. Above 0 the solver is ddim.",
             min=0.0, max=1.0, step=0.05, advanced=True),
        TOWARD_KNOB,
        weight_knob("x0", ("gap",)),
        *distance_knobs("huber"),
    ),
    needs="latents", sampler="lcm",
    evaluations=lambda knobs: 4 + (0 if knobs["teacher"] == "none" else 4 if knobs["solver"] == "heun" else 2),
)  # fmt: skip
