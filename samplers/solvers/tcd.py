"""TCD: strategic stochastic sampling. Zheng et al. 2024, arXiv:2402.19159, algorithm 4.

Each step jumps below the next timestep t, to s = (1 - gamma) t, and adds the noise that leads back up to t. CTM's gamma
(``ctm_gamma``) is the same with s a share of the noise level instead of the timestep.
"""

import torch

from ..core import Knob, march
from ..noise import from_seed
from .renoise import renoised, shares_through
from .solver import Solver
from .time_shift import sigma_at

ON_TABLE = 1e-5  # in log sigma: float32 sigmas are nearer to their timestep, and timesteps are 0.003 apart


def sample_tcd(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, gamma=0.3, end="clean"
):
    """gamma 0 is DDIM, order 1. gamma 1 is core's lcm, but that an eps or v model keeps the noise of its timestep 0.

    With end "timestep_0", eps and v models that have a table finish there as diffusers does, in VP coordinates.
    """
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    table = timestep_table(path)
    scale = 1.0
    if end == "timestep_0" and table is not None and sigmas[-1] == 0:
        last = min(float(table[0].exp()), float(sigmas[-2]))
        sigmas = torch.cat([sigmas[:-1], sigmas.new_tensor([last])])
        scale = (1 + last**2) ** 0.5
    levels = sigmas.cpu().double()[1:]
    keep, fresh = shares_through(path, levels_below(path, levels, gamma), levels)

    def step(i, x, denoised, sigma, sigma_next):
        return renoised(path, x, denoised, sigma, sigma_next, keep[i], fresh[i], noise_sampler)

    return march(step, model, x, sigmas, extra_args, callback) / scale


def timestep_table(path):
    """Log noise levels of the timesteps 0, 1, ..., (T,), CPU, float64. None where the model has no whole timesteps."""
    return None if path.log_sigmas is None or path.prediction not in ("eps", "v") else path.log_sigmas.cpu().double()


def levels_below(path, levels, gamma):
    """The noise levels at (1 - gamma) of the times of levels, (n,), never above them. CPU, float64.

    At timesteps of the table the result is a timestep too, rounded down as in diffusers' TCDScheduler. Anything else is
    taken in ``path.time``: on flow that is sigma itself.
    """
    if gamma == 0:
        return levels
    time = (1 - gamma) * path.time(levels)
    below = torch.where(time > 0, sigma_at(path, time), 0.0).minimum(levels)
    table = timestep_table(path)
    if table is None:
        return below
    gaps = (levels.log()[:, None] - table).abs()
    timesteps = gaps.argmin(1)
    jumped = ((1 - gamma) * timesteps).floor().long()  # in float32, as diffusers does
    published = torch.where(jumped == timesteps, levels, table[jumped].exp())
    return torch.where(gaps.amin(1) < ON_TABLE, published, below)


SOLVERS = {
    "tcd": Solver(
        sample_tcd, "turbo", "TCD", lambda knobs: 1, 1, True,
        "Zheng et al. 2024, arXiv:2402.19159",
        "TCD and Hyper-SD, at any number of steps they were made for; PCM too",
        (
            Knob(
                "gamma", 0.3, "How far below its target each step jumps, as a share of the timestep, before noise leads back up "
                "(eta in diffusers). 0 = no noise, DDIM, the same as Euler; 1 = all of it is new, as lcm. More for more steps.",
                min=0.0, max=1.0, step=0.01,
            ),
            Knob(
                "end", "clean", "Where a run to sigma 0 ends. clean: at the clean latent, as all of ComfyUI's samplers. "
                "timestep_0: at the model's timestep 0, as diffusers, which leaves 3 % noise on Stable Diffusion. The same on "
                "flow models.", options=("clean", "timestep_0"), advanced=True,
            ),
        ),
    ),
}  # fmt: skip
