"""Tables of exponential Runge-Kutta methods: combinations of phi functions, which check themselves when made.

Hochbruck and Ostermann 2005, doi:10.1137/040611434 (HO); Cox and Matthews 2002, doi:10.1006/jcph.2002.6995; Krogstad 2005,
doi:10.1016/j.jcp.2004.08.006; Lu et al. 2022, arXiv:2211.01095.
"""

from dataclasses import dataclass
from math import isclose, prod

from .phi import phi


@dataclass(frozen=True)
class Tableau:
    """A method of ``order`` for u' = L u + N(u, t), with z = h L.

    nodes: c of each stage, counted from 0, whose c is 0. rows: one for each further stage and, last, one for the result,
    {stage: ((factor, k, c), ...)}, the weight of that stage being the sum of factor phi_k(c z). The weight of stage 0 is
    what makes the row sum to c phi_1(c z), which every method here needs, so it is not written down.
    """

    nodes: tuple[float, ...]
    rows: tuple[dict[int, tuple[tuple[float, int, float], ...]], ...]
    order: int

    def __post_init__(self):
        """Check the order conditions of plain Runge-Kutta methods, which L = 0 makes of these."""
        *a, b = (self.weights(row, 0.0) for row in range(len(self.rows)))
        a, c = [[], *a], self.nodes
        ac, acc = ([dot(row, power) for row in a] for power in (c, [node**2 for node in c]))
        conditions = (
            (1, sum(b), 1), (2, dot(b, c), 1 / 2), (3, dot(b, c, c), 1 / 3), (3, dot(b, ac), 1 / 6),
            (4, dot(b, c, c, c), 1 / 4), (4, dot(b, c, ac), 1 / 8), (4, dot(b, acc), 1 / 12),
            (4, dot(b, [dot(row, ac) for row in a]), 1 / 24),
        )  # fmt: skip
        for order, value, needed in conditions:
            assert order > self.order or isclose(value, needed, abs_tol=1e-12), f"nodes {c}: not of order {order}"

    def weights(self, row, z):
        """The weights of one row at z, from stage 0 on: for a stage those before it, for the result all."""
        c = (*self.nodes[1:], 1.0)[row]
        stages = range(1, min(row + 1, len(self.nodes)))
        later = [sum(factor * phi(k, at * z) for factor, k, at in self.rows[row].get(j, ())) for j in stages]
        return [c * phi(1, c * z) - sum(later), *later]


def dot(*factors):
    return sum(map(prod, zip(*factors)))


def euler():
    return Tableau((0.0,), ({},), 1)


def midpoint_2s(c2):
    """DPM-Solver-2 and DPM-Solver++(2S): phi_1 / 2 where the exact weight has phi_2."""
    return Tableau((0.0, c2), ({}, {1: ((1 / (2 * c2), 1, 1),)}), 2)


def res_2s(c2):
    """HO equation 5.3. c2 = 1 is Cox and Matthews' ETD2RK."""
    return Tableau((0.0, c2), ({}, {1: ((1 / c2, 2, 1),)}), 2)


def res_3s(c2):
    """HO equation 5.8. c2 = 1/3 is DPM-Solver-3 and DPM-Solver++(3S)."""
    c3 = 2 / 3
    return Tableau((0.0, c2, c3), ({}, {1: ((c3**2 / c2, 2, c3),)}, {2: ((1 / c3, 2, 1),)}), 3)


ETD3RK = Tableau(  # Cox and Matthews, equations 23 to 25
    (0.0, 1 / 2, 1.0), ({}, {1: ((2, 1, 1),)}, {1: ((4, 2, 1), (-8, 3, 1)), 2: ((-1, 2, 1), (4, 3, 1))}), 3
)
KROGSTAD = Tableau(  # HO equation 5.17
    (0.0, 1 / 2, 1 / 2, 1.0),
    (
        {},
        {1: ((1, 2, 1 / 2),)},
        {2: ((2, 2, 1),)},
        {1: ((2, 2, 1), (-4, 3, 1)), 2: ((2, 2, 1), (-4, 3, 1)), 3: ((-1, 2, 1), (4, 3, 1))},
    ),
    4,
)
A52 = ((1 / 2, 2, 1 / 2), (-1, 3, 1), (1 / 4, 2, 1), (-1 / 2, 3, 1 / 2))
RES_5S = Tableau(  # HO equation 5.19
    (0.0, 1 / 2, 1 / 2, 1.0, 1 / 2),
    (
        {},
        {1: ((1, 2, 1 / 2),)},
        {1: ((1, 2, 1),), 2: ((1, 2, 1),)},
        {1: A52, 2: A52, 3: ((1 / 4, 2, 1 / 2), *((-factor, k, c) for factor, k, c in A52))},
        {3: ((-1, 2, 1), (4, 3, 1)), 4: ((4, 2, 1), (-8, 3, 1))},
    ),
    4,
)

BY_NAME = {  # name: the tableau for a c2, where the method leaves it free
    "res_2s": res_2s,
    "res_3s": res_3s,
    "etd3rk": lambda c2: ETD3RK,
    "krogstad": lambda c2: KROGSTAD,
    "res_5s": lambda c2: RES_5S,
}
