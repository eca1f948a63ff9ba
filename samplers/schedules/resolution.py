"""More steps at high noise for larger pictures, which a given noise hides less well.

Both lay out even steps in the time of a flow and then shift them: sigma -> shift sigma / (1 + (shift - 1) sigma). Esser et
al. 2024 (SD3), arXiv:2403.03206, equation 23. The model's own shift has no part in it.
"""

from math import exp, sqrt

import torch

from ..core import Knob
from .schedule import Schedule


def sd3_shift(n, sigma_min, sigma_max, *, path, tokens, shift=3.0, reference_tokens=4096):
    """shift sqrt(tokens / reference_tokens): equation 23, for a model known to want ``shift`` at reference_tokens."""
    check_flow("SD3 shift", path)
    return shifted(n, sigma_max, shift * sqrt(tokens / reference_tokens))


def dynamic_shift(
    n, sigma_min, sigma_max, *, path, tokens, time_shift_type="exponential", base_shift=0.5, max_shift=1.15, base_tokens=256,
    max_tokens=4096,
):  # fmt: skip
    """Flux's, and diffusers' use_dynamic_shifting. mu is linear in tokens; the shift is exp(mu), or mu where linear."""
    check_flow("Dynamic shift", path)
    if base_tokens >= max_tokens:
        raise ValueError(f"base_tokens is {base_tokens}, max_tokens {max_tokens}: max_tokens must be the larger.")
    mu = base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)
    if time_shift_type == "exponential":
        return shifted(n, sigma_max, exp(mu))
    if mu <= 0:
        raise ValueError(
            f"base_shift is {base_shift:g}, max_shift {max_shift:g}: the straight line through them gives the shift {mu:g} at "
            f"{tokens} tokens, and it must be above 0. Raise base_shift, or set time_shift_type to exponential."
        )
    return shifted(n, sigma_max, mu)


def check_flow(title, path):
    if not path.is_flow:
        raise ValueError(
            f"{title} is for flow models, and this model predicts {path.prediction}. Use cosine_log_snr, whose shift does "
            "the same there."
        )


def shifted(n, sigma_max, shift):
    """n + 1 levels from sigma_max to 0, at even times before the shift."""
    first = sigma_max / (shift + (1 - shift) * sigma_max)
    time = first * (1 - torch.arange(n + 1, dtype=torch.float64) / n)
    return shift * time / (1 + (shift - 1) * time)


SCHEDULES = {
    "dynamic_shift": Schedule(
        dynamic_shift, "Dynamic shift", "Flux's form of Esser et al. 2024, arXiv:2403.03206",
        "Flux, Qwen-Image and kin at any size; the shift that a shift node sets on the model is not used",
        (
            Knob(
                "time_shift_type", "exponential", "What is linear in the number of tokens: the logarithm of the shift "
                "(exponential, as Flux) or the shift itself (linear).", options=("exponential", "linear"),
            ),
            Knob("base_shift", 0.5, "mu at base_tokens.", min=0.0, max=20.0, step=0.01),
            Knob("max_shift", 1.15, "mu at max_tokens; the line goes on beyond.", min=0.0, max=20.0, step=0.01),
            Knob(
                "base_tokens", 256, "Tokens of the smaller picture: 256 is 256 x 256 on Flux.", min=1, max=1000000, step=1,
                advanced=True,
            ),
            Knob(
                "max_tokens", 4096, "Tokens of the larger picture: 4096 is 1024 x 1024 on Flux.", min=2, max=1000000, step=1,
                advanced=True,
            ),
        ),
    ),
    "sd3_shift": Schedule(
        sd3_shift, "SD3 shift", "Esser et al. 2024, arXiv:2403.03206, equation 23",
        "any flow model at a size other than the one its shift is known for, video among them",
        (
            Knob("shift", 3.0, "The shift that is right at reference_tokens: 3 for SD3. 1 = none.", min=0.01, max=100.0, step=0.01),
            Knob(
                "reference_tokens", 4096, "Tokens of the picture that shift is meant for: 4096 is 1024 x 1024 on SD3.", min=1,
                max=1000000, step=1,
            ),
        ),
    ),
}
