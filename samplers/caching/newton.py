"""Newton: the polynomial through the last values, continued. TaylorSeer's forecast, exact with uneven steps.

Liu et al. 2025, arXiv:2503.06923. There the Taylor factors are repeated backward differences, which from order 2 on are not the
derivatives at the last value, so that a parabola is missed. Here they are Newton's divided differences, which it is not; and the
weights they amount to are computed from the coordinates alone.
"""

from ..core import Knob
from .forecast import Forecast, lagrange
from .part import Part


class Newton(Forecast):
    """Exact, with reach 1, for polynomials of degree up to ``order``. With fewer values than order + 1: of the order that they allow.

    reach: of the way from the last value to the polynomial's, the share that is gone.
    """

    def __init__(self, order, reach=1.0):
        super().__init__(keep=order + 1)
        self.reach = reach

    def weights(self, ats, at):
        *before, last = (self.reach * weight for weight in lagrange(ats, at))
        return (*before, last + (1 - self.reach))


ORDER = Knob(
    "order", 1, "Degree of the polynomial that is continued: 1 a line, 2 a parabola. Higher follows smooth runs of many steps better, and "
    "makes noise larger.", min=1, max=3, step=1,
)  # fmt: skip

NEWTON = Part(
    "Newton", "after TaylorSeer, Liu et al. 2025, arXiv:2503.06923",
    "the largest saving where features change smoothly: 20 steps and more, few skips in a row",
    (
        ORDER,
        Knob("reach", 1.0, "How much of the change that is foretold to believe. Less than 1 is safer where many steps are skipped in a row. "
             "0: the last value again.", min=0.0, max=1.0, step=0.05, advanced=True),
    ),
    make=lambda settings: Newton(**settings),
)  # fmt: skip
