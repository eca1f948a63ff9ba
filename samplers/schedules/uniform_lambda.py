"""Even steps in lambda = log(alpha / sigma). Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, section 3.4."""

import torch

from .schedule import Schedule, with_ends


def uniform_lambda(n, sigma_min, sigma_max, *, path):
    """On VE paths this is k-diffusion's exponential schedule. On flow, sigma_max = 1 has lambda = -inf: the first value
    is then still 1, as core's samplers expect, and the steps are laid out from path.sigma_first.
    """
    ends = path.offset_first(torch.tensor([sigma_max, sigma_min], dtype=torch.float64))
    top, bottom = path.lam(ends).tolist()
    return with_ends(path.sigma(torch.linspace(top, bottom, n, dtype=torch.float64)), sigma_min, sigma_max)


SCHEDULES = {
    "uniform_lambda": Schedule(
        uniform_lambda, "Uniform lambda", "Lu et al. 2022, arXiv:2206.00927",
        "exponential integrators (DPM-Solver and kin), and small details at 15 steps and more",
    ),
}
