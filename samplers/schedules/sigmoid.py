"""Steps dense at both ends of the time of a flow. Kim et al. 2024 (Simple ReFlow), arXiv:2410.07815."""

import torch

from ..core import Knob
from .schedule import Schedule, with_ends


def sigmoid(n, sigma_min, sigma_max, *, path, kappa=20.0):
    """time = (s(kappa (u - 1/2)) - s(-kappa / 2)) / (s(kappa / 2) - s(-kappa / 2)) at even u, s the logistic function.

    Time is sigma on flow, and sigma / (1 + sigma), its flow image, elsewhere. The published grid ends at time 0; this one
    runs between sigma_max and sigma_min and then takes the last step to 0, since a model knows nothing below sigma_min.
    """
    top, bottom = torch.sigmoid(-path.lam(torch.tensor([sigma_max, sigma_min], dtype=torch.float64)))
    u = torch.linspace(1, 0, n, dtype=torch.float64)
    low, high = torch.tensor([-kappa / 2, kappa / 2], dtype=torch.float64).sigmoid()
    time = bottom + (top - bottom) * ((kappa * (u - 0.5)).sigmoid() - low) / (high - low)
    return with_ends(path.sigma(-time.logit()), sigma_min, sigma_max)


SCHEDULES = {
    "sigmoid": Schedule(
        sigmoid, "Sigmoid", "Kim et al. 2024, arXiv:2410.07815",
        "straightened flows (ReFlow) at few steps, whose paths bend only near both ends",
        (
            Knob(
                "kappa", 20.0, "How strongly steps gather at both ends: 20 as published, towards 0 = even steps in time.",
                min=0.1, max=30.0, step=0.1,
            ),
        ),
    ),
}
