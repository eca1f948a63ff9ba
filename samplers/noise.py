"""Noise, made from one seed per batch item, so that batch size never changes an item.

Drawn on the CPU in float32, as ComfyUI draws it: a seed means the same noise on every device.
"""

import torch

RENOISE = 0x9E3779B97F4A7C15  # sets the seeds of ``gaussian`` apart from those of ``initial``


def item_seeds(seed, count):
    """seed, seed + 1, ...: item i of a batch is the single run with seed + i. Wraps where ComfyUI's seeds end."""
    return [(seed + i) % 2**64 for i in range(count)]


def initial(shape, seeds):
    """The noise a run starts from, float32. Each item equals comfy.sample.prepare_noise for that item and seed alone."""
    return _draw(shape, [torch.Generator().manual_seed(seed) for seed in _one_per_item(seeds, shape)])


def gaussian(x, seeds):
    """A noise source ``noise_sampler(sigma, sigma_next)`` like x, for solvers that renoise.

    May be given the seeds that made x: the values it draws are not those of ``initial``.
    """
    generators = [torch.Generator().manual_seed(seed ^ RENOISE) for seed in _one_per_item(seeds, x.shape)]
    return lambda sigma, sigma_next: _draw(x.shape, generators).to(x)


def from_seed(x, extra_args):
    """What solvers draw from unless told otherwise: ``gaussian``, item i from ComfyUI's seed + i, or i without a seed."""
    seed = (extra_args or {}).get("seed") or 0
    return gaussian(x, item_seeds(seed, len(x)))


def fixed(noises):
    """A noise source that hands out the given tensors in turn: for tests, and for repeating a recorded run."""
    remaining = iter(noises)
    return lambda sigma, sigma_next: next(remaining)


def _draw(shape, generators):
    return torch.cat([torch.randn((1, *shape[1:]), generator=generator) for generator in generators])


def _one_per_item(seeds, shape):
    if len(seeds) != shape[0]:
        raise ValueError(f"{len(seeds)} seed(s) for a batch of {shape[0]}: give one seed per item.")
    return seeds
