"""Denoisers whose answer is known: the data distribution is given, so the best denoiser and the exact ODE end point are.

Each works on any Path: x = alpha x0 + sigma eps, alpha = 1 on VE paths and 1 - sigma on flow.
"""

import math
from dataclasses import dataclass

import torch
from comfyui_distillery.samplers.core import append_dims
from comfyui_distillery.samplers.path import Path

from bench.problems import mixture, randn  # noqa: F401  both are for the tests beside this

EPS, FLOW = Path("eps"), Path("flow")
PATHS = {"eps": EPS, "flow": FLOW}
SIGMAS = {"eps": [14.6, 6.0, 2.0, 0.7, 0.2, 0.0], "flow": [1.0, 0.9, 0.7, 0.4, 0.1, 0.0]}


def number(value):
    """A float64 scalar: torch.tensor(0.98) alone has only 7 digits."""
    return torch.tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std^2), a different mean and std in every element; mean and std have a batch axis of 1."""

    path: Path
    mean: torch.Tensor
    std: torch.Tensor

    def _marginal(self, x, sigma):
        sigma = append_dims(sigma, x)
        alpha = self.path.alpha(sigma)
        return alpha, alpha * self.mean, torch.hypot(alpha * self.std, sigma)

    def __call__(self, x, sigma):
        alpha, mean, std = self._marginal(x, sigma)
        return self.mean + alpha * self.std**2 / std**2 * (x - mean)

    def exact(self, x, sigma, sigma_next):
        """Where the probability-flow ODE takes x: every element keeps its distance from the mean in std's."""
        _, mean, std = self._marginal(x, sigma)
        _, mean_next, std_next = self._marginal(x, sigma_next)
        return mean_next + std_next * (x - mean) / std

    def start(self, sigma, batch=3, seed=0):
        noise = randn(batch, *self.mean.shape[1:], seed=seed).to(self.mean)
        _, mean, std = self._marginal(noise, sigma)
        return mean + std * noise


def gaussian(path, shape=(2, 3, 2), dtype=torch.float64):
    """Stds from 0.4 to 1.6, means from -1 to 1."""
    count = math.prod(shape)
    return Gaussian(
        path,
        torch.linspace(-1, 1, count, dtype=dtype).view(1, *shape),
        torch.linspace(0.4, 1.6, count, dtype=dtype).flip(0).view(1, *shape),
    )


def graded(n, top, bottom, power=2.5):
    """n steps, smooth in i/n, that start very small: Euler's error in a multistep method's first step then fades faster
    than the error of the method itself, which is what is to be measured."""
    return top * (bottom / top) ** (torch.linspace(0, 1, n + 1, dtype=torch.float64) ** power)


def convergence(errors, counts):
    """Slope of log error against log 1/n: the order of convergence."""
    x, y = -torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def assert_close(a, b, tolerance):
    """Same shape and dtype, and nowhere further apart than tolerance times b's largest value, or times 1."""
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)
