"""Weights on the squared error of D, so that any paper's loss is a weight on |D - x0|^2.

An error of D by d is one of eps by d alpha / sigma, of v by d / (alpha_vp sigma_vp) in units where x_vp has unit variance, of
the velocity by d / sigma, and of EDM's network by d / c_out.
"""

from ..samplers.core import Knob
from .geometry import snr

FLOOR = 0.05  # of sigma / alpha: below it no weight grows any more, as rounding would outweigh the signal
GAMMA = 5.0  # Hang et al. 2023, arXiv:2303.09556, section 4

WEIGHTS = {  # name: (path, sigma) -> weight
    "x0": lambda path, sigma: sigma**0,
    "eps": snr,
    "v": lambda path, sigma: snr(path, sigma) + 1,  # Salimans & Ho 2022, arXiv:2202.00512, section 4: "SNR + 1"
    "truncated": lambda path, sigma: snr(path, sigma).clamp(min=1),  # the same, "truncated SNR"
    "flow": lambda path, sigma: sigma**-2,
    "edm": lambda path, sigma: sigma**-2 + path.sigma_data**-2,  # Karras et al. 2022, arXiv:2206.00364, table 1: 1 / c_out^2
    "min_snr": lambda path, sigma: snr(path, sigma).clamp(max=GAMMA),  # Hang et al. 2023, the same for every prediction
}


def weight(name, path, sigma):
    """(B,) weights at sigma (B,). Those that grow without bound as sigma falls stop at a VE sigma of ``FLOOR``."""
    lowest = FLOOR / (1 + FLOOR) if path.is_flow else FLOOR
    return WEIGHTS[name](path, sigma.clamp(min=lowest))


def weight_knob(default, more=()):
    return Knob(
        "weight", default, "How much an error counts at each noise level, as a weight on that of the clean image: x0 all alike, "
        "eps, v, flow and edm as a loss on that prediction, truncated and min_snr between them.",
        options=(*WEIGHTS, *more), advanced=True,
    )  # fmt: skip
