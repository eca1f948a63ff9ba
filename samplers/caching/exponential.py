"""Exponential: a + b exp(c t) through the last values, with c measured during the run.

The basis of the DMD calibrator of cache-dit. Features that settle are followed to where they settle, which a polynomial overshoots.
Each item of the first axis has one c: from its last three values, by least squares over the elements, the factor by which one change
became the next. Nothing here waits for the device.
"""

import torch

from ..core import batch_dims
from .forecast import Forecast, combined, lagrange
from .part import Part

SETTLED, GROWING = -20.0, 1.0  # bounds of c times the mean step: e^-20 is all of it gone, beyond e a step is no forecast
ROUNDS = 8  # of Newton's method on a function that is nearly a line


class Exponential(Forecast):
    """Exact for a + b exp(c t), b of any shape, at any spacing, where c grows by at most a factor e in a mean step.

    A change that turns round (factor 0 or below) counts as settled. With two values, a line; with one, that. A tensor of one axis is
    one item.
    """

    def __init__(self):
        super().__init__(keep=2)
        self.rate = None  # c of each item, to broadcast

    def observe(self, at, value):
        if len(self.ats) == 2 and at > self.ats[1]:  # another evaluation at the same place says nothing about c
            self.rate = self.measured(at, value)
        super().observe(at, value)

    def measured(self, at, value):
        before, last = self.values
        dtype = torch.promote_types(value.dtype, torch.float32)
        older, newer = last.to(dtype) - before, value.to(dtype) - last
        dims = batch_dims(value) if value.ndim > 1 else None
        dot, square = ((older * other).sum(dims, keepdim=value.ndim > 1) for other in (newer, older))
        factor = torch.where(square > 0, dot / torch.where(square > 0, square, 1), 0)
        return rate_of(factor, self.ats[1] - self.ats[0], at - self.ats[1])

    def predict(self, at):
        if self.rate is None:
            return combined(self.values, lagrange(self.ats, at))
        before, last = self.values
        c, ahead, step = self.rate, at - self.ats[1], self.ats[1] - self.ats[0]
        share = torch.where(c == 0, ahead / step, torch.expm1(c * ahead) / -torch.expm1(-torch.where(c == 0, 1, c) * step))
        last = last.to(torch.promote_types(last.dtype, torch.float32))
        return (last + share.to(last) * (last - before)).to(before.dtype)


def rate_of(factor, h, h_next):
    """c such that b exp(c t) changes over a step h_next by this factor of its change over the step h before.

    factor is exp(c m) (sinh(c h_next / 2)) / (sinh(c h / 2)) with m = (h + h_next) / 2: log factor is convex or concave in c, and
    on even steps a line, so that Newton's method converges from anywhere.
    """
    m = (h + h_next) / 2
    goal = factor.clamp(min=1e-12).log() - torch.log(torch.ones_like(factor) * (h_next / h))
    c = goal / m
    for _ in range(ROUNDS):
        value = m * c + log_sinhc(c * h_next / 2) - log_sinhc(c * h / 2) - goal
        slope = m + h_next / 2 * slope_of_log_sinhc(c * h_next / 2) - h / 2 * slope_of_log_sinhc(c * h / 2)
        c = c - value / slope
    return c.clamp(SETTLED / m, GROWING / m)


def log_sinhc(x):
    """log(sinh(x) / x), without overflow."""
    a = x.abs().clamp(min=1e-3)
    return torch.where(x.abs() < 1e-3, x * x / 6, a + torch.log(-torch.expm1(-2 * a) / (2 * a)))


def slope_of_log_sinhc(x):
    a = x.abs().clamp(min=1e-3)
    return torch.where(x.abs() < 1e-3, x / 3, x.sign() * (1 / torch.tanh(a) - 1 / a))


EXPONENTIAL = Part(
    "Exponential", "after the DMD calibrator of cache-dit", "features that settle as a run goes on; two kept values only",
    (), make=lambda settings: Exponential(),
)  # fmt: skip
