"""What a training objective sees of the model: one denoiser that plays several roles on the same frozen weights."""

from typing import Protocol

from ..samplers.core import append_dims
from ..samplers.path import Path

TEACHER = "teacher"  # the frozen model alone
STUDENT, EMA, PREVIOUS, FAKE = "student", "ema", "previous", "fake"  # each a LoraSet on top of it


class Roles(Protocol):
    """``roles(role, x, sigma, cond, strength=1.0) -> denoised``, the predicted clean latent.

    x: (B, C, ..., H, W) noisy latents on the model's own scale and ``path``. sigma: (B,). cond: one condition per item, which
    offers ``cond[indices]``. strength: what the role's LoRA is multiplied by, a number. Gradients reach the role's own LoRA and
    x, nothing else. The teacher has no LoRA.
    """

    path: Path

    def __call__(self, role, x, sigma, cond, strength=1.0): ...

    def guided(self, x, sigma, cond, negative, scale):
        """The teacher under classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) in the host's convention:
        D_neg + w (D_cond - D_neg), at scale w, a number or (B,). The number 1 costs one evaluation instead of two.
        """
        conditional = self(TEACHER, x, sigma, cond)
        if isinstance(scale, (int, float)):
            if scale == 1:
                return conditional
        else:
            scale = append_dims(scale.to(x), x)
        unconditional = self(TEACHER, x, sigma, negative)
        return unconditional + scale * (conditional - unconditional)
