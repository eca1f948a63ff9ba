"""Adams: the mean, over the stretch that is being skipped, of the polynomial through the last values.

As an Adams-Bashforth step uses derivatives. predict(at) is 1 / (at - last) times the integral from the last evaluated coordinate
to ``at``: on even steps 3/2 of the last value less 1/2 of the one before. It differs from Newton, which gives the polynomial's value
at ``at``, by looking half as far: a line is continued to the middle of the stretch only, and noise grows less. Exact as a mean, so
where the value is a rate that a solver sums up over the stretch, and where the signal is constant; behind by half on a slope.
"""

from functools import lru_cache

from .forecast import Forecast, lagrange
from .newton import ORDER
from .part import Part

GAUSS = (0.5 - 12**-0.5, 0.5 + 12**-0.5)  # places in a stretch whose mean is that of a polynomial up to degree 3


class Adams(Forecast):
    """The exact mean for polynomials of degree up to ``order``. With fewer values: of the order that they allow."""

    def __init__(self, order):
        super().__init__(keep=order + 1)

    def weights(self, ats, at):
        return adams_bashforth(ats, at)


@lru_cache(maxsize=256)
def adams_bashforth(nodes, at):
    """Weights of values at these nodes, at most 4, for the polynomial's mean between the last node and ``at``."""
    last = nodes[-1]
    low, high = (lagrange(nodes, last + share * (at - last)) for share in GAUSS)
    return tuple((a + b) / 2 for a, b in zip(low, high))


ADAMS = Part(
    "Adams", "after AB-Cache, Yu et al. 2025, arXiv:2504.10540",
    "whole predictions between solver steps; half of Newton's stride where that overshoots",
    (ORDER,), make=lambda settings: Adams(**settings),
)  # fmt: skip
