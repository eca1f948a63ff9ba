"""Cosine schedule in log SNR. Nichol and Dhariwal 2021, arXiv:2102.09672; with a shift, Hoogeboom et al. 2023,
arXiv:2301.11093, section 3.1.
"""

import torch

from ..core import Knob
from .schedule import Schedule, level_at, noise_over_signal, with_ends


def cosine_log_snr(n, sigma_min, sigma_max, *, path, noise_shift=1.0):
    """log SNR(t) = -2 log tan(t pi / 2) - 2 log noise_shift, at even t between the two that give the model's ends.

    So noise over signal is noise_shift tan(angle) at even angles. noise_shift = image size / 64 is the paper's. A flow may start at
    sigma 1: the angle there is a right one, nothing infinite.
    """
    top, bottom = torch.atan(noise_over_signal([sigma_max, sigma_min], path) / noise_shift).tolist()
    angles = torch.linspace(top, bottom, n, dtype=torch.float64)
    return with_ends(level_at(noise_shift * angles.tan(), path), sigma_min, sigma_max)


SCHEDULES = {
    "cosine_log_snr": Schedule(
        cosine_log_snr, "Cosine log SNR", "Hoogeboom et al. 2023, arXiv:2301.11093",
        "few steps; with noise_shift above 1, pictures larger than the model was trained for",
        (
            Knob(
                "noise_shift", 1.0, "Noise over signal is so many times that of the plain cosine: more of the steps go to high "
                "noise. The paper's is the picture's side / 64 for models of pixels. Neutral: 1.",
                min=0.05, max=50.0, step=0.05,
            ),
        ),
    ),
}
