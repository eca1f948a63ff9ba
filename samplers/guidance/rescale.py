"""Rescaled guidance: the guided prediction brought back to the spread of the conditional one."""

from dataclasses import replace

import torch

from ..core import Knob, batch_dims
from .chain import plain
from .rule import Rule, wide


def rescale(cond, uncond, scale, *, phi=0.7, on="velocity", at):
    """Rescaled guidance. Lin et al. 2023, arXiv:2305.08891, equations 15 and 16: std over an item, of what ``on`` says.

    output is what the network predicts; velocity the same, but v where that is eps, as core's RescaleCFG has it; denoised the
    clean latent. At phi 1 its std is the conditional prediction's; phi 0 is plain CFG.
    """
    x, sigma, given = wide(at.x), wide(at.sigma), wide(cond)
    guided = plain(given, wide(uncond), scale)
    base = 0 if on == "denoised" else path_of(on, at.path).denoised(torch.zeros_like(x), x, sigma)
    spread, wanted = (part.std(batch_dims(x), keepdim=True) for part in (guided - base, given - base))
    ratio = torch.where(spread > 0, wanted / torch.where(spread > 0, spread, 1), 1)
    return (guided + phi * (ratio - 1) * (guided - base)).to(cond)


def path_of(on, path):
    return replace(path, prediction="v") if on == "velocity" and path.prediction == "eps" else path


RESCALE = Rule(
    rescale, "Rescaled guidance", "Lin et al. 2023, arXiv:2305.08891",
    "high CFG without overexposure",
    (
        Knob("phi", 0.7, "Share of the rescaled prediction. 0 = none, as in plain CFG; the paper uses 0.7.", min=0.0, max=1.0, step=0.01),
        Knob("on", "velocity", "What gets its spread back: velocity, which is v on models that predict noise, as in core's RescaleCFG; "
             "output, what the network predicts; or denoised, the clean latent.", options=("velocity", "output", "denoised"), advanced=True),
    ),
    neutral={"phi": 0.0},
    family="strength",
    spatial=True,
)  # fmt: skip
