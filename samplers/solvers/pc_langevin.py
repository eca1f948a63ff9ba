"""Predictor-corrector sampling. Song et al. 2021, arXiv:2011.13456, algorithms 1, 4 and 5.

After each predictor step, Langevin steps at the new noise level pull x back to that level's distribution:
``x += e score + sqrt(2 e) n`` with score = -eps / sigma. With e = 2 (ratio sigma)^2 that is
``x += 2 ratio sigma (n - ratio eps)``, the same on every path.
"""

from math import sqrt

import torch

from ..core import Knob, batch_dims, denoiser, march, predicted_noise
from ..noise import from_seed
from .renoise import check_range, renoised
from .solver import Solver


def sample_pc_langevin(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, predictor="ode",
    corrector="langevin", corrector_steps=1, snr=0.16, correct_from=1000.0, correct_to=0.0,
):  # fmt: skip
    """Order 1 without noise: predictor ode, which is Euler, and corrector_steps or snr 0."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    check_range("correct_to", correct_to, "correct_from", correct_from)
    denoise = denoiser(model, extra_args)
    levels = sigmas.cpu().double()
    shares = [predicted_shares(predictor, ratio) for ratio in (path.lam(levels[:-1]) - path.lam(levels[1:])).exp().tolist()]
    inside = ((levels[1:] <= correct_from) & (levels[1:] >= correct_to)).tolist()

    def step(i, x, denoised, sigma, sigma_next):
        x = renoised(path, x, denoised, sigma, sigma_next, *shares[i], noise_sampler)
        for _ in range(corrector_steps if inside[i] and snr else 0):
            eps = predicted_noise(path, x, denoise(x, sigma_next), sigma_next)
            noise = noise_sampler(sigma_next, sigma_next)
            ratio = snr * (norm(noise) / norm(eps) if corrector == "langevin" else 1)
            x = x + 2 * ratio * sigma_next * (noise - ratio * eps)
        return x

    return march(step, model, x, sigmas, extra_args, callback)


def predicted_shares(predictor, ratio):
    """Shares of eps to keep and of noise to add, where the VE noise level falls to ``ratio`` of itself.

    ratio 0, a step from sigma 1 of a flow, starts from pure noise: reverse_diffusion, which would add infinite noise, takes
    the ancestral step there.
    """
    if predictor == "ode":
        return 1.0, 0.0
    if predictor == "reverse_diffusion" and ratio:
        return ratio, sqrt(1 / ratio**2 - 1)
    return ratio, sqrt(1 - ratio**2)


def norm(x):
    """Of each item, shaped to broadcast."""
    return torch.linalg.vector_norm(x, dim=batch_dims(x), keepdim=True)


def count_calls(n, knobs):
    return n + (n - 1) * (knobs["corrector_steps"] if knobs["snr"] else 0)


SOLVERS = {
    "pc_langevin": Solver(
        sample_pc_langevin, "stochastic", "Predictor-corrector (Langevin)", lambda knobs: 1, 2, True,
        "Song et al. 2021, arXiv:2011.13456",
        "spending model calls on correction instead of more steps; 20 steps and more",
        (
            Knob(
                "predictor", "ode", "How noise is removed: ode = Euler, no noise; ancestral = posterior steps; reverse_diffusion = "
                "as published for VE models, which adds too much noise unless steps are many (hundreds).",
                options=("ode", "ancestral", "reverse_diffusion"),
            ),
            Knob("corrector_steps", 1, "Langevin steps after each predictor step, one model call each. 0 = none.", min=0, max=20, step=1),
            Knob(
                "snr", 0.16, "Size of a Langevin step: noise added against noise removed. 0 = no correction. The paper has 0.01 "
                "to 0.2; larger mixes more and leaves more noise.", min=0.0, max=1.0, step=0.01,
            ),
            Knob(
                "corrector", "langevin", "langevin = the step is measured on each picture's own predicted noise; annealed = it "
                "depends on the noise level alone.", options=("langevin", "annealed"), advanced=True,
            ),
            Knob(
                "correct_from", 1000.0, "Noise levels above this are not corrected, which saves their calls. 1000 = no limit.",
                min=0.0, max=1000.0, step=0.01, advanced=True,
            ),
            Knob(
                "correct_to", 0.0, "Noise levels below this are not corrected. 0 = no limit.",
                min=0.0, max=1000.0, step=0.01, advanced=True,
            ),
        ),
        calls=count_calls,
    ),
}
