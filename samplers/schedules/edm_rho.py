"""Even steps in sigma^(1 / rho). Karras et al. 2022 (EDM), arXiv:2206.00364, equation 5."""

import torch

from ..core import Knob
from .schedule import Schedule, level_at, noise_over_signal, with_ends


def edm_rho(n, sigma_min, sigma_max, *, path, rho=7.0, flow_top=80.0):
    """sigma is EDM's, noise over signal: the model's own on VE paths, sigma / (1 - sigma) on flow.

    A flow that starts at sigma 1 starts at infinity there. Its first value is then still 1, and the steps are laid out
    from flow_top, or from sigma_max where that is less.
    """
    top, bottom = noise_over_signal([sigma_max, sigma_min], path)
    if path.is_flow:
        top = top.clamp(max=flow_top)
    top, bottom = top ** (1 / rho), bottom ** (1 / rho)
    share = torch.linspace(0, 1, n, dtype=torch.float64)
    return with_ends(level_at((top + share * (bottom - top)) ** rho, path), sigma_min, sigma_max)


SCHEDULES = {
    "edm_rho": Schedule(
        edm_rho, "EDM rho", "Karras et al. 2022, arXiv:2206.00364",
        "10 to 40 steps with a solver of order 2 or more, on any model",
        (
            Knob(
                "rho", 7.0, "How strongly steps gather at low noise: 7 as published, 1 = even in noise over signal, large = "
                "uniform lambda.", min=1.0, max=100.0, step=0.1,
            ),
            Knob(
                "flow_top", 80.0, "For flow models, which begin at infinite noise over signal: where the grid begins "
                "instead, before its first value is put back to 1. 80 is EDM's own start; other models begin at their own.",
                min=1.0, max=10000.0, step=1.0, advanced=True,
            ),
        ),
    ),
}
