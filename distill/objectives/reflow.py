"""Reflow: from a noise straight to where the teacher takes it."""

import torch

from ...samplers.core import Knob
from ..huber import distance_knobs
from ..roles import STUDENT
from ..weights import weight_knob
from .objective import Objective, loss_of


def reflow(roles, batch, *, at_start, anneal, weight, distance, huber_c):
    """The student's D anywhere between a noise and its end, on the straight line of the model's own path, is that end.

    Liu et al. 2022, arXiv:2209.03003; InstaFlow, Liu et al. 2023, arXiv:2309.06380. On eps and v models it is Rectified
    Diffusion, Wang et al. 2024, arXiv:2410.07303: the pairs matter, no change to a flow is needed. at_start: share of items at
    the noise itself, where one step begins. anneal: share of the run in which the pair's noise takes the place of an unrelated
    one, SlimFlow, Zhu et al. 2024, arXiv:2407.12718.
    """
    time = torch.where(batch.draws.uniform("start") < at_start, 1.0, batch.time)
    noise = batch.noise
    fresh = max(0.0, 1 - batch.progress / anneal) if anneal else 0.0
    if fresh:
        noise = (1 - fresh**2) ** 0.5 * noise + fresh * batch.draws.normal("anneal", noise)
    x, sigma = batch.noisy(time, noise)
    student = roles(STUDENT, x, sigma, batch.cond)
    return loss_of(student, batch.clean, batch.path, sigma, weight, distance, huber_c)


REFLOW = Objective(
    reflow, "Reflow and Rectified Diffusion",
    "Liu et al. 2022, arXiv:2209.03003; Liu et al. 2023, arXiv:2309.06380; Wang et al. 2024, arXiv:2410.07303",
    "1 to 4 plain steps, and the start for sharper ones; each pair costs a whole picture of the teacher, once",
    (
        Knob("at_start", 0.25, "Share of the items at pure noise, where the first step begins. More for one step.",
             min=0.0, max=1.0, step=0.05),
        Knob("anneal", 0.0, "Share of the run that passes gradually from unrelated noises to the pairs' own. 0 = the pairs' own "
             "from the start.", min=0.0, max=1.0, step=0.05, advanced=True),
        weight_knob("v"),
        *distance_knobs("squared"),
    ),
    needs="pairs", sampler="euler", evaluations=lambda knobs: 3,
)  # fmt: skip
