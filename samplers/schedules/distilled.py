"""The timesteps that consistency models are distilled at: those of LCM, TCD and PCM, and the angles of sCM."""

import torch

from ..core import Knob
from .schedule import Schedule, level_at, noise_over_signal
from .timesteps import checked_count, levels


def lcm_timesteps(n, sigma_min, sigma_max, *, path, table, original_steps=50):
    """n of the original_steps timesteps that distillation used, evenly picked from the last: diffusers' LCMScheduler."""
    count = checked_count(n, table)
    if original_steps > count:
        raise ValueError(
            f"original_steps is {original_steps}, and this model has {count} timesteps. Lower original_steps to that or less."
        )
    if n > original_steps:
        raise ValueError(
            f"steps / denoise is {n}, and original_steps {original_steps}: steps are picked from these. Lower steps, or raise "
            "denoise or original_steps."
        )
    picked = (torch.arange(n, dtype=torch.float64) * (original_steps / n)).floor()  # rounds as numpy.linspace
    return levels((original_steps - picked) * (count // original_steps) - 1, path, table)


def scm_timesteps(n, sigma_min, sigma_max, *, path, max_angle=1.5708, middle_angle=1.3):
    """TrigFlow angles: even from max_angle, or the model's noisiest level, to 0; two steps go by way of middle_angle.

    tan(angle) is noise over signal, in units of the data's std on EDM models: diffusers' SCMScheduler.
    """
    top = torch.atan(noise_over_signal([sigma_max], path) / path.sigma_data)
    angles = torch.linspace(min(max_angle, float(top)), 0, n + 1, dtype=torch.float64)
    if n == 2:
        if middle_angle >= angles[0]:
            raise ValueError(
                f"middle_angle is {middle_angle:g}, and the run begins at {float(angles[0]):g}: middle_angle must be smaller."
            )
        angles[1] = middle_angle
    return level_at(path.sigma_data * angles.tan(), path)


SCHEDULES = {
    "lcm_timesteps": Schedule(
        lcm_timesteps, "LCM timesteps", "Luo et al. 2023 (LCM), arXiv:2310.04378",
        "LCM, TCD and PCM models, and their LoRAs, at the timesteps of their own pipelines",
        (
            Knob(
                "original_steps", 50, "How many timesteps the model was distilled at; steps are picked from these. 50 for LCM, TCD "
                "and PCM.", min=1, max=1000, step=1,
            ),
        ),
    ),
    "scm_timesteps": Schedule(
        scm_timesteps, "SCM timesteps", "Lu and Song 2024 (sCM), arXiv:2410.11081; SANA-Sprint, arXiv:2503.09641",
        "continuous-time consistency models (sCM, SANA-Sprint) in 1 to 4 steps, with the solver scm or core's lcm",
        (
            Knob(
                "max_angle", 1.5708, "Where to begin, at most: the angle whose tangent is noise over signal. 1.5708 = pure noise; "
                "1.5646 for models made for a noise of 80.", min=0.1, max=1.5708, step=0.0001,
            ),
            Knob(
                "middle_angle", 1.3, "The angle between the two steps, of runs of two steps: 1.3 for SANA-Sprint, 1.1 in sCM's "
                "paper. More steps are even in the angle.", min=0.01, max=1.57, step=0.01,
            ),
        ),
    ),
}  # fmt: skip
