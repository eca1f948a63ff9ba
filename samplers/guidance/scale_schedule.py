"""A CFG scale that changes over the run or over the frames of a video."""

import torch

from ..core import Knob, append_dims
from .chain import plain
from .rule import Rule, wide


def scale_schedule(cond, uncond, scale, *, shape="power_cosine", first_scale=1.0, power=4.0, at):
    """Plain CFG at the scale of this moment or frame, which ends at ``scale``. shape constant is plain CFG.

    power_cosine: Gao et al. 2023 (MDT), arXiv:2303.14389, 1 at the noisiest level; power 0 is constant. linear: from first_scale at
    the first step on. frames: from first_scale at the first frame on, in each video latent (B, C, F, H, W) - Blattmann et al. 2023
    (SVD), arXiv:2311.15127. A latent without frames, or with one, has the whole scale.
    """
    given, other = wide(cond), wide(uncond)
    return plain(given, other, SHAPES[shape](given, scale, first_scale, power, at)).to(cond)


def constant(x, scale, first_scale, power, at):
    return scale


def power_cosine(x, scale, first_scale, power, at):
    progress = (1 - wide(at.time())).clamp(0, 1) ** power
    return append_dims(1 + (scale - 1) * (1 - torch.cos(torch.pi * progress)) / 2, x)


def linear(x, scale, first_scale, power, at):
    return scale if at.steps < 2 else first_scale + (scale - first_scale) * at.step / (at.steps - 1)


def frames(x, scale, first_scale, power, at):
    if x.ndim < 5 or x.shape[2] < 2:
        return scale
    return torch.linspace(first_scale, scale, x.shape[2], dtype=x.dtype, device=x.device).view(-1, 1, 1)


SHAPES = {"power_cosine": power_cosine, "linear": linear, "frames": frames, "constant": constant}

SCALE_SCHEDULE = Rule(
    scale_schedule, "Scale schedule", "MDT, Gao et al. 2023, arXiv:2303.14389; SVD, Blattmann et al. 2023, arXiv:2311.15127",
    "variety early and the prompt late, or videos that stay with their first frame",
    (
        Knob("shape", "power_cosine", "power_cosine rises from 1 with the noise gone (MDT), linear with each step, frames with each frame "
             "of a 5-D video latent, as SVD (for SVD itself, whose frames are a batch, use VideoLinearCFGGuidance). constant = plain CFG.", options=tuple(SHAPES)),
        Knob("first_scale", 1.0, "The scale at the first step or frame, for linear and frames; the sampler's comes last.",
             min=0.0, max=100.0, step=0.1),
        Knob("power", 4.0, "How long power_cosine stays low. 4 in the paper; 0 = not at all, as in plain CFG.",
             min=0.0, max=100.0, step=0.1),
    ),
    neutral={"shape": "constant"},
    family="strength",
    spatial=True,
)  # fmt: skip
