"""CFG-Zero*: guidance away from the unconditional prediction at the length that fits the conditional one best."""

import torch

from ..core import Knob, append_dims, batch_dims
from .chain import plain
from .rule import Rule, wide

NOISE = 0.9  # on a flow, the sigma from which a latent counts as noise: later steps of a second stage are not zeroed


def zero_star(cond, uncond, scale, *, strength=1.0, zero_steps=1, at):
    """CFG-Zero*. Fan et al. 2025, arXiv:2503.18886: alpha v_u + scale (v_c - alpha v_u), on v = (x - denoised) / sigma.

    alpha = <v_c, v_u> / |v_u|^2, over an item, which leaves v_c - alpha v_u across v_u; strength 0 is alpha 1. On a flow, and
    while sigma is at least NOISE, v is 0 for the first ``zero_steps`` steps: x stays as it is. strength = zero_steps = 0 is plain CFG.
    """
    x, guided = wide(at.x), plain(wide(cond), wide(uncond), scale)
    c, u = x - wide(cond), x - wide(uncond)  # sigma cancels
    square = (u * u).sum(batch_dims(u), keepdim=True)
    alpha = torch.where(square > 0, (c * u).sum(batch_dims(u), keepdim=True) / torch.where(square > 0, square, 1), 1)
    guided = guided + (scale - 1) * strength * (alpha - 1) * u
    if at.path.is_flow and at.step < zero_steps:
        guided = torch.where(append_dims(at.sigma >= NOISE, x), x, guided)
    return guided.to(cond)


STRENGTH = Knob("strength", 1.0, "How much of the correction to the unconditional prediction. 1 = all, as published; 0 = none, as in "
                "plain CFG.", min=0.0, max=1.0, step=0.01)  # fmt: skip

ZERO_STAR = Rule(
    zero_star, "CFG-Zero*", "Fan et al. 2025, arXiv:2503.18886",
    "flow models that overshoot in the first steps",
    (
        STRENGTH,
        Knob("zero_steps", 1, "First steps that stand still, on flow models starting from noise. The paper: 4 % of all, so 1 of 25; "
             "0 with few steps. 0 = none, as in plain CFG.", min=0, max=100, step=1),
    ),
    neutral={"strength": 0.0, "zero_steps": 0},
    family="projected",
)  # fmt: skip
