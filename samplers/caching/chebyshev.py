"""Chebyshev: a polynomial of low degree fitted to the last values by least squares, continued. As Spectrum (CVPR 2026) does.

Newton passes through every value and so through its noise; a fit to more values than it has coefficients averages it out. The basis
spans from the oldest value kept to the coordinate asked for. Without ``ridge`` it only keeps the fit well conditioned; with it, the
coefficients above the constant are held small.
"""

from functools import lru_cache

import torch

from ..core import Knob
from .forecast import Forecast
from .newton import ORDER
from .part import Part


class Chebyshev(Forecast):
    """Exact, with ridge 0, for polynomials of degree up to ``order``, which is less than ``window``."""

    def __init__(self, order, window, ridge):
        super().__init__(keep=window)
        self.order, self.ridge = order, ridge

    def weights(self, ats, at):
        return fitted(ats, at, min(self.order, len(ats) - 1), self.ridge)


@lru_cache(maxsize=256)
def fitted(nodes, at, degree, ridge):
    """Weights of values at these nodes in the fit's value at ``at``. Their sum is 1. On the CPU: coordinates are floats."""
    if degree == 0 or at == nodes[0]:
        return (0.0,) * (len(nodes) - 1) + (1.0,)
    places = torch.tensor([*nodes, at], dtype=torch.float64, device="cpu")
    places = 2 * (places - places.min()) / (places.max() - places.min()) - 1
    basis = torch.cos(torch.arange(degree + 1, dtype=torch.float64, device="cpu") * places.clamp(-1, 1).acos()[:, None])
    rows, target = basis[:-1], basis[-1]
    held = torch.full((degree + 1,), ridge, dtype=torch.float64, device="cpu")
    held[0] = 0
    return tuple((rows @ torch.linalg.solve(rows.T @ rows + held.diag(), target)).tolist())


def check(settings):
    order, window = settings["order"], settings["window"]
    if order >= window:
        raise ValueError(
            f"order is {order} and window {window}: {window} values fix a polynomial of order {window - 1} at most."
        )


CHEBYSHEV = Part(
    "Chebyshev", "after Spectrum, CVPR 2026", "long runs whose features are noisy: averages over a window of evaluations",
    (
        ORDER,
        Knob("window", 4, "How many of the last evaluations the polynomial is fitted to. Each is kept in memory.", min=2, max=8, step=1),
        Knob("ridge", 0.0, "How much to hold down all that is not constant. Exact at 0; at 0.1 noise counts less.",
             min=0.0, max=10.0, step=0.01, advanced=True),
    ),
    make=lambda settings: Chebyshev(**settings), check=check,
)  # fmt: skip
