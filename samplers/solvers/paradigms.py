"""ParaDiGMS: sampling steps in parallel. Shih et al. 2023, arXiv:2305.16317, algorithm 1, on the Euler step.

Picard iteration: guess the states of the next ``window`` steps, call the model on all of them at once, replace each by what
the steps before it add up to, and move past those that hardly changed. Such a round settles one more step at least, so there
are no more rounds than steps. What is saved is waiting; the work over all states grows.
"""

import logging

import torch

from ..core import Knob, denoiser
from .solver import Solver

log = logging.getLogger(__name__)


def sample_paradigms(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, window=16, tolerance=0.1, max_batch=0
):
    """Order 1. Every item slides a window of its own, so it never depends on the others; whoever arrives first waits.

    The model gets w states of B items at once, x (w * B, C, ..., H, W) and sigma (w * B,), the item running fastest. A state
    is settled when a round moves it by at most tolerance times the length in sigma of the step to it, both as a root mean
    square. Holds window + 1 states and their predictions.
    """
    denoise = denoiser(model, extra_args)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sigmas = sigmas.to(x)
    last, items = len(sigmas) - 2, torch.arange(len(x), device=x.device)
    limits = tolerance * (sigmas[:-1] - sigmas[1:])
    states = x.expand(min(window, last + 1) + 1, *x.shape)  # of the window, oldest first; the guess: nothing changes
    at = torch.zeros(len(x), dtype=torch.long)  # step at which each item's window begins
    done = rounds = evaluated = 0
    while done <= last:
        width = len(states) - 1
        steps = at + torch.arange(width)[:, None]  # (width, B)
        here = steps.clamp(max=last).to(x.device)
        sigma = sigmas[here]
        sigma_next = torch.where((steps <= last).to(x.device), sigmas[here + 1], sigma)  # an item that has arrived stays
        denoised = in_batches(denoise, states[:-1], sigma, max_batch)
        updated = picard(states, euler(states[:-1], denoised, sigma, sigma_next))
        moved = (updated - states)[1:].square().flatten(2).mean(2).sqrt()
        settled = (moved <= limits[here]).cpu()  # the one time in a round that the device is waited for
        rounds, evaluated = rounds + 1, evaluated + width * len(x)
        stride = (1 + settled.long().cumprod(0).sum(0)).clamp(max=width).minimum(last + 1 - at)
        at, before = at + stride, done
        done = int(at.min())
        if callback is not None:
            for i in range(before, done):
                now = {"x": states[i - before], "denoised": denoised[i - before]}
                callback({"i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], **now})
        kept = torch.arange(min(window, last + 1 - done) + 1)[:, None] + stride
        states = updated[kept.clamp(max=width).to(x.device), items]  # new slots: the last state, as the first guess
    log.info("ParaDiGMS: %d steps in %d rounds, %d latents evaluated", last + 1, rounds, evaluated)
    return states[0]


def in_batches(denoise, states, sigma, max_batch):
    """denoised of states (w, B, C, ..., H, W) at sigma (w, B), with at most max_batch latents a call, or one state; 0: any."""
    w, batch = sigma.shape
    rows = max(1, max_batch // batch) if max_batch else w
    parts = zip(states.flatten(0, 1).split(rows * batch), sigma.flatten().split(rows * batch))
    return torch.cat([denoise(x, s) for x, s in parts]).view(states.shape)


def euler(x, denoised, sigma, sigma_next):
    """The states after a step each; denoised itself where it ends on sigma 0. x (w, B, ...), sigma (w, B)."""
    shape = sigma.shape + (1,) * (x.ndim - 2)
    sigma, sigma_next = sigma.view(shape), sigma_next.view(shape)
    return torch.where(sigma_next == 0, denoised, x + (sigma_next - sigma) * (x - denoised) / sigma)


def picard(states, stepped):
    """The window after a round: each state moves as far as the steps before it, taken from the old states, say."""
    updated = [states[0]]
    for old, new in zip(states, stepped):
        updated.append(new + (updated[-1] - old))
    return torch.stack(updated)


def most_calls(steps, knobs):
    """For one item and a run in which every round settles one step only."""
    widths = [min(knobs["window"], steps - done) for done in range(steps)]
    return sum(-(-width // (knobs["max_batch"] or width)) for width in widths)


SOLVERS = {
    "paradigms": Solver(
        sample_paradigms, "parallel", "ParaDiGMS", lambda knobs: 1, 1, False,
        "Shih et al. 2023, arXiv:2305.16317",
        "Euler's picture sooner, at 16 steps or more, where the device has room for a larger batch; counts are upper bounds",
        (
            Knob(
                "window", 16, "How many steps to work on at once: the batch is this many times larger. 1 = Euler.",
                min=1, max=128, step=1,
            ),
            Knob(
                "tolerance", 0.1, "How far a state may still move when it is taken as final, as a share of its step. Larger: "
                "fewer rounds, less exact. 0 = exactly Euler, in as many rounds as steps.",
                min=0.0, max=1.0, step=0.01,
            ),
            Knob(
                "max_batch", 0, "Most latents in one model call, to bound memory: a round is then several calls. 0 = no limit. "
                "1 = one noise level a call, for other nodes that cannot take several.",
                min=0, max=4096, step=1, advanced=True,
            ),
        ),
        calls=most_calls, mixes_sigmas=True,
    ),
}
