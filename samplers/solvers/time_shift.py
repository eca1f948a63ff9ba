"""Time-Shift sampler. Li et al. 2023, arXiv:2305.15583: call the model at the noise level that x shows, not the planned one.

Errors of the steps before leave x with too much or too little variance for its place in the schedule. The paper compares the
variance of x in VP coordinates with that of the noise alone, which suits data of small variance; at a data variance of 1, where
the VP variance is 1 throughout, it picks the last time of all. Here data and noise both count, in VE coordinates:
var(x / alpha) = data_variance + (sigma / alpha)^2. Differences within sampling noise are left alone.
"""

from itertools import pairwise

import torch

from ..core import Knob, append_dims, batch_dims, denoiser, to_d
from .solver import Solver

SIGNIFICANT = 3  # standard deviations of a variance over that many independent elements
TIMES = 1000  # window and cutoff count in training steps of the usual length


def sample_time_shift(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, window=20.0, cutoff=300.0, data_variance=1.0
):
    """Euler from the level found. Each item finds its own, so the model gets sigma (B,) with different values."""
    denoise = denoiser(model, extra_args)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    least, most = (bound.to(x) for bound in ranges(path, sigmas.cpu().double(), window, cutoff))
    shifts, last = (least < most).tolist(), len(sigmas) - 2
    sigmas = sigmas.to(x)
    ends_clean = bool(sigmas[-1] == 0)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        level = sigma
        if shifts[i]:
            level = matching_level(path, x, sigma, data_variance).clamp(least[i], most[i])
            x = x * append_dims(path.alpha(level) / path.alpha(sigma), x)
        denoised = denoise(x, level)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        ends = i == last and ends_clean
        x = denoised if ends else x + append_dims(sigma_next - level, x) * to_d(x, level, denoised)
    return x


def matching_level(path, x, sigma, data_variance):
    """Per item, (B,): the sigma at which x / alpha has the variance it has; sigma itself where the difference is noise."""
    planned = sigma / path.alpha(sigma)
    variance = (x / path.alpha(sigma)).var(dim=batch_dims(x), correction=0)
    excess = variance - data_variance - planned**2
    noise = variance * (2 / x[0].numel()) ** 0.5
    found = (planned**2 + excess).clamp(min=0).sqrt()
    level = path.from_ve(found, found)[1]
    return torch.where(excess.abs() > SIGNIFICANT * noise, level, sigma)


def ranges(path, sigmas, window, cutoff):
    """Least and most sigma of each step, (n,) each: window / 2 training steps to either side, within the neighbours.

    Equal, that is no shift, for the first step and from cutoff down. CPU, float64.
    """
    time = path.time(sigmas[:-1]) * TIMES
    least, most = (sigma_at(path, (time + side * window / 2) / TIMES) for side in (-1, 1))
    least = torch.maximum(least, sigmas[1:])
    most = torch.minimum(most, torch.cat([sigmas[:1], sigmas[:-2]]))
    fixed = (time <= cutoff) | (window == 0)
    fixed[0] = True
    return torch.where(fixed, sigmas[:-1], least), torch.where(fixed, sigmas[:-1], most)


def sigma_at(path, time):
    """The sigma of a model time, by bisection: the inverse of path.time."""
    low, high = torch.full_like(time, -20.0), torch.full_like(time, 20.0)  # of minus lam
    for _ in range(60):
        middle = (low + high) / 2
        below = path.time(path.sigma(-middle)) < time
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return path.sigma(-high)


SOLVERS = {
    "time_shift": Solver(
        sample_time_shift, "shortcut", "Time-Shift", lambda knobs: 1, 1, False,
        "Li et al. 2023, arXiv:2305.15583",
        "few steps where pictures come out too busy or too flat, as their latents have drifted from the schedule",
        (
            Knob(
                "window", 20.0, "How far the noise level may be moved: this many of 1000 training steps, half to either side. "
                "0 = no shift, the same as Euler. The paper uses 2 to 80, larger with fewer steps.",
                min=0.0, max=200.0, step=1.0,
            ),
            Knob(
                "cutoff", 300.0, "Shift only above this training step of 1000, where the variance still tells the noise level. "
                "1000 = never.", min=0.0, max=1000.0, step=10.0,
            ),
            Knob(
                "data_variance", 1.0, "Variance of the model's clean latents over all elements. 1 fits most latent models.",
                min=0.0, max=10.0, step=0.01, advanced=True,
            ),
        ),
        mixes_sigmas=True,
    ),
}
