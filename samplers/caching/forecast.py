"""What stands in for a cached tensor at a skipped step, from what it was at the evaluated ones."""

from functools import lru_cache
from math import prod

import torch


class Forecast:
    """One cached tensor of one condition in one run, of any shape. Each subclass says how the kept values are weighed.

    ``at`` is the coordinate of a step, index or log-SNR, rising and unevenly spaced at will. Values are kept as they are, not
    copied: nobody may change them in place, nor what ``predict`` returns. Sums are float32, or float64 where the values are.
    """

    def __init__(self, keep):
        self.keep = keep
        self.ats, self.values = (), ()  # newest last

    def observe(self, at, value):
        """What an evaluation at this coordinate gave. A second one at the same place replaces the first."""
        if self.ats and at < self.ats[-1]:
            raise ValueError(
                f"at is {at:g} after {self.ats[-1]:g}: coordinates of a run must rise. Begin a forecast for each run."
            )
        fresh = not (self.ats and at == self.ats[-1])
        ats, values = (self.ats, self.values) if fresh else (self.ats[:-1], self.values[:-1])
        self.ats, self.values = (*ats, at)[-self.keep :], (*values, value)[-self.keep :]

    def predict(self, at):
        """The value at this coordinate, once ``ready``; of the values' shape and dtype."""
        return combined(self.values, self.weights(self.ats, at))

    def weights(self, ats, at):
        """One float for each kept value: the forecast is their weighted sum."""
        raise NotImplementedError

    @property
    def ready(self):
        return bool(self.ats)

    @property
    def memory(self):
        """Bytes held."""
        return sum(value.nbytes for value in self.values)


def combined(values, weights):
    """The weighted sum in the values' dtype. A single weight of 1 gives that value itself."""
    terms = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    (first, weight), *rest = terms
    if weight == 1 and not rest:
        return first
    total = first.to(torch.promote_types(first.dtype, torch.float32)) * weight
    for value, weight in rest:
        total.add_(value, alpha=weight)
    return total.to(first.dtype)


@lru_cache(maxsize=256)  # many tensors of a network are forecast at the same places
def lagrange(nodes, at):
    """Weights of values at these nodes in the polynomial through them, taken at ``at``. nodes: distinct floats."""
    return tuple(prod((at - other) / (node - other) for other in nodes if other != node) for node in nodes)
