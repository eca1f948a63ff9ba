"""Schedules by hand: levels through given points, and edits of a list of levels. Falling float64 lists throughout."""

from math import log

import torch

INTERPOLATIONS = ("linear", "log_linear", "monotone_cubic")


def through(points, n, interpolation):
    """n + 1 levels through points (k,), k >= 2, which lie evenly along the steps; the first and last are met exactly.

    linear and monotone_cubic (Fritsch and Butland 1984, as scipy's PchipInterpolator) work on sigma, log_linear on its
    logarithm, where a last point of 0 is one last step of its own.
    """
    if len(points) < 2:
        raise ValueError(f"points has {len(points)} level(s): interpolation needs two or more. Add points, or use none.")
    if interpolation != "log_linear":
        place = {"linear": straight, "monotone_cubic": monotone_cubic}[interpolation]
        return place(points, torch.linspace(0, len(points) - 1, n + 1, dtype=torch.float64))
    positive, end = points[points > 0], points[points == 0]
    if len(positive) < 2:
        raise ValueError(f"points has {len(positive)} level above 0, and log_linear needs two. Add points, or use linear.")
    positions = torch.linspace(0, len(positive) - 1, n + 1 - len(end), dtype=torch.float64)
    return torch.cat([straight(positive.log(), positions).exp(), end])


def straight(values, positions):
    below = positions.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[below], values[below + 1], positions - below)


def monotone_cubic(values, positions):
    """The cubic Hermite spline whose slopes never overshoot: falling values give a falling curve. Evenly spaced values."""
    rises = values.diff()
    if len(rises) == 1:
        return straight(values, positions)
    inner = 2 * rises[:-1] * rises[1:] / (rises[:-1] + rises[1:])  # harmonic mean
    ends = (3 * rises[[0, -1]] - rises[[1, -2]]) / 2
    ends = ends.where(ends.sign() == rises[[0, -1]].sign(), 0)
    slopes = torch.cat([ends[:1], inner, ends[1:]])
    below = positions.floor().long().clamp(max=len(values) - 2)
    t = positions - below
    start = values[below] + t * slopes[below] * (1 - t) ** 2
    return start + t**2 * (3 - 2 * t) * rises[below] - t**2 * (1 - t) * slopes[below + 1]


def merged(levels, others):
    """Both lists in one, each level once, to float32: SIGMAS tell no finer levels apart."""
    return torch.cat([levels, others]).float().unique(sorted=True).flip(0).double()


def shifted(levels, shift, path):
    """Noise over signal times ``shift``: on flow equation 23 of arXiv:2403.03206, which keeps 1, elsewhere sigma times shift."""
    return levels if shift == 1 else path.sigma(path.lam(levels) - log(shift))


def clipped(levels, highest, lowest):
    """The part from highest to lowest, each of which becomes an end where levels go beyond it."""
    if not lowest < highest or levels[0] <= lowest or levels[-1] >= highest:
        raise ValueError(
            f"highest is {highest:g}, lowest {lowest:g}: nothing of the schedule, {levels[0]:g} to {levels[-1]:g}, lies between."
        )
    inside = levels[(levels < highest) & (levels > lowest)]
    return merged(torch.cat([levels[:1].clamp(max=highest), levels[-1:].clamp(min=lowest)]), inside)
