"""PCM: phased consistency sampling. Wang et al. 2024, arXiv:2405.18407, section 3.

The way down is cut into phases, and a step goes, by DDIM, to the end of the phase it is in. Where the next noise level lies
within that phase, fresh noise leads back up to it.
"""

from ..core import Knob, march
from ..noise import from_seed
from .renoise import renoised, shares_through
from .solver import Solver


def sample_pcm(model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, phases=0):
    """phases 0, or one a step: DDIM, order 1, no noise. 1: core's lcm."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    exact = sigmas.cpu().double()
    keep, fresh = shares_through(path, exact[phase_ends(len(sigmas) - 1, phases)], exact[1:])

    def step(i, x, denoised, sigma, sigma_next):
        return renoised(path, x, denoised, sigma, sigma_next, keep[i], fresh[i], noise_sampler)

    return march(step, model, x, sigmas, extra_args, callback)


def phase_ends(steps, phases):
    """For each step the index of the noise level that ends its phase, of phases that share out the steps evenly."""
    count = min(phases or steps, steps)
    ends = [(phase + 1) * steps // count for phase in range(count)]
    return [next(end for end in ends if end > step) for step in range(steps)]


SOLVERS = {
    "pcm": Solver(
        sample_pcm, "turbo", "PCM", lambda knobs: 1, 1, False,
        "Wang et al. 2024, arXiv:2405.18407",
        "PCM models: without noise at one phase a step, or in more steps than the model has phases",
        (
            Knob(
                "phases", 0, "Into how many phases the steps are shared out: those the model was trained with. Within a phase, "
                "steps draw noise. 0, or as many as steps = none, DDIM, the same as Euler; 1 = core's lcm, PCM's stochastic "
                "sampling.", min=0, max=1000, step=1,
            ),
        ),
    ),
}  # fmt: skip
