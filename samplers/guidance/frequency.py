"""Frequency-decoupled guidance: coarse structure and detail are guided by scales of their own."""

from torch.nn import functional

from ..core import Knob
from .chain import plain
from .rule import Rule, wide

BINOMIAL = [weight / 16 for weight in (1, 4, 6, 4, 1)]


def frequency(cond, uncond, scale, *, low=0.44, high=1.0, octaves=1):
    """Frequency-decoupled guidance. Sadat et al. 2025, arXiv:2506.19713, with a Laplacian pyramid, as published.

    A scale w guides by w - 1, in the paper and here: low frequencies by low * (scale - 1), the others by high * (scale - 1).
    low = high = 1 is plain CFG. Works on the last two axes after the channels, frame by frame.
    """
    given, other = wide(cond), wide(uncond)
    difference = coarse = given - other
    for axis in range(max(2, cond.ndim - 2), cond.ndim):
        coarse = low_pass(coarse.movedim(axis, -1), octaves).movedim(-1, axis)
    guided = plain(given, other, scale)
    return (guided + (scale - 1) * ((low - 1) * coarse + (high - 1) * (difference - coarse))).to(cond)


def low_pass(x, octaves):
    """What a pyramid of so many halvings keeps in its last level, along the last axis of x. Below 3 values all of it is low."""
    if not octaves or x.shape[-1] < 3:
        return x
    smaller = low_pass(resized(blurred(x), x.shape[-1] // 2), octaves - 1)
    return blurred(resized(smaller, x.shape[-1]))


def blurred(x):
    length, padded = x.shape[-1], functional.pad(x.reshape(-1, x.shape[-1]), (2, 2), mode="reflect")
    return sum(weight * padded[:, i : i + length] for i, weight in enumerate(BINOMIAL)).view_as(x)


def resized(x, length):
    flat = functional.interpolate(x.reshape(-1, 1, x.shape[-1]), size=length, mode="linear")
    return flat.view(*x.shape[:-1], length)


FREQUENCY = Rule(
    frequency, "Frequency-decoupled guidance (FDG)", "Sadat et al. 2025, arXiv:2506.19713",
    "sharp detail at high CFG without its colours and sameness",
    (
        Knob("low", 0.44, "Share of the guidance for coarse structure: 0.44 at CFG 10 is the published 5 against 10 for SDXL. "
             "1 = as in plain CFG.", min=0.0, max=10.0, step=0.01),
        Knob("high", 1.0, "Share of the guidance for detail. 1 = as in plain CFG.", min=0.0, max=10.0, step=0.01),
        Knob("octaves", 1, "Where coarse begins: so many halvings of the latent. 1 in the paper.", min=1, max=8, step=1, advanced=True),
    ),
    neutral={"low": 1.0, "high": 1.0},
    family="strength",
    spatial=True,
)  # fmt: skip
