"""Gaussian teleport. Wang and Vastola, arXiv:2311.10892 and arXiv:2412.09726: skip the first steps by an exact solution.

At high noise a model denoises as if its data were Gaussian. For Gaussian data the whole ODE is known: every component keeps its
distance from the mean in standard deviations. So the first steps are one formula and no model call; a solver does the rest.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..core import Knob, march, to_d
from .solver import Solver


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, rest on all directions, but variances along basis).

    mean (1, C, ..., H, W); basis (r, elements of an item), orthonormal; variances (r,); rest (), the others' common variance.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    variances: torch.Tensor
    rest: torch.Tensor

    def spread(self, gap, factor):
        """gap (B, ...) with each component scaled by factor(its variance)."""
        flat, basis = gap.flatten(1), self.basis.to(gap)
        rest = factor(self.rest.to(gap))
        along = (flat @ basis.T) * (factor(self.variances.to(gap)) - rest)
        return (rest * flat + along @ basis).view_as(gap)

    def move(self, path, x, sigma, sigma_next):
        """Where the probability-flow ODE takes x. Exact on any path, from sigma 1 of a flow too."""
        mean, alpha, alpha_next = self.mean.to(x), path.alpha(sigma), path.alpha(sigma_next)

        def factor(variance):
            std = variance.sqrt()
            return torch.hypot(alpha_next * std, sigma_next) / torch.hypot(alpha * std, sigma)

        return alpha_next * mean + self.spread(x - alpha * mean, factor)

    def denoised(self, path, x, sigma):
        """The best prediction of the clean latent."""
        mean, alpha = self.mean.to(x), path.alpha(sigma)
        return mean + self.spread(x - alpha * mean, lambda v: alpha * v / (alpha**2 * v + sigma**2))


def isotropic(shape, std):
    """N(0, std^2) for items of this shape, (C, ..., H, W)."""
    nothing = torch.zeros(0, torch.Size(shape).numel())
    return Gaussian(torch.zeros(1, *shape), nothing, torch.zeros(0), torch.tensor(std, dtype=torch.float64) ** 2)


def fit(samples, components):
    """The Gaussian of samples (N, C, ..., H, W), N >= 2: their mean and leading principal components, at most N - 1.

    Where the components leave variance over, it is shared out evenly among the other directions, as in probabilistic PCA.
    """
    samples = samples.double().cpu()
    mean = samples.mean(0, keepdim=True)
    gaps = (samples - mean).flatten(1) / (len(samples) - 1) ** 0.5
    _, scales, basis = torch.linalg.svd(gaps, full_matrices=False)
    total, used = scales.square().sum(), min(components, len(samples) - 1)
    variances, basis = scales[:used] ** 2, basis[:used]
    kept = variances > 1e-9 * total  # repeated samples span less
    variances, basis = variances[kept], basis[kept]
    rest = (total - variances.sum()).clamp(min=0) / max(gaps.shape[1] - len(variances), 1)
    return Gaussian(mean, basis, variances, rest)


def sample_gaussian_teleport(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, skip=0.1, std=1.0, components=64, samples=None,
    then=None,
):
    """samples (N, C, ..., H, W), on the model's own scale, say what its latents are like; without, N(0, std^2).

    then(model, x, sigmas, extra_args, callback, disable) runs the steps that remain; Euler where none is given. ValueError
    where the samples are fewer than two or of another shape than x.
    """
    if samples is not None:
        check_samples(samples, x)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    skipped = skipped_steps(len(sigmas) - 1, skip)
    if skipped:
        data = isotropic(x.shape[1:], std) if samples is None else fit(samples, components)
        levels = sigmas.to(x)
        start = x
        for i, (sigma, sigma_next) in enumerate(pairwise(levels[: skipped + 1])):
            if callback is not None:
                denoised = data.denoised(path, x, sigma)
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = data.move(path, start, levels[0], sigma_next)

    def later(state):
        callback(state | {"i": state["i"] + skipped})

    then = then or euler
    return then(model, x, sigmas[skipped:], extra_args, callback and later, disable)


def euler(model, x, sigmas, extra_args, callback, disable):
    def step(i, x, denoised, sigma, sigma_next):
        return x + (sigma_next - sigma) * to_d(x, sigma, denoised)

    return march(step, model, x, sigmas, extra_args, callback)


def skipped_steps(steps, skip):
    """How many of the first steps need no model call. skip is below 1, so the last always does."""
    return int(skip * steps + 1e-9)


def check_samples(samples, x):
    if samples.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"samples has latents of the shape {tuple(samples.shape[1:])} and this run has {tuple(x.shape[1:])}: give latents "
            "of this model, of the size to be sampled."
        )
    if len(samples) < 2:
        raise ValueError("samples has one latent, which has no spread: give two at least, better 16, or none.")
    if not samples.isfinite().all():
        raise ValueError("samples holds NaN or infinite values: look for what failed before it.")


SOLVERS = {
    "gaussian_teleport": Solver(
        sample_gaussian_teleport, "shortcut", "Gaussian teleport", lambda knobs: 1, 1, False,
        "Wang and Vastola 2023, arXiv:2311.10892 and arXiv:2412.09726",
        "saving the first steps, in which a model only finds the mean and broad layout; check the picture against skip 0",
        (
            Knob(
                "skip", 0.1, "Share of the steps, from the start, that the formula replaces, rounded down. 0 = none, the same as Euler.",
                min=0.0, max=0.95, step=0.01,
            ),
            Knob(
                "std", 1.0, "Standard deviation of the model's clean latents, mean 0: used where no samples are connected.",
                min=0.0, max=10.0, step=0.01,
            ),
            Knob(
                "components", 64, "Most principal components to take from the samples; at most one fewer than there are "
                "samples. 0 = their mean, and one variance for all.", min=0, max=1024, step=1, advanced=True,
            ),
        ),
        calls=lambda steps, knobs: steps - skipped_steps(steps, knobs["skip"]),
    ),
}
