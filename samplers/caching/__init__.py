"""Caching: every policy (when to skip an evaluation) and every forecast (what stands in for it), by name."""

from .accumulated import ACCUMULATED
from .adams import ADAMS
from .budget import BUDGET
from .chebyshev import CHEBYSHEV
from .exponential import EXPONENTIAL
from .first_block import FIRST_BLOCK
from .interval import INTERVAL
from .magnitude import MAGNITUDE
from .mask import MASK
from .newton import NEWTON
from .rate import RATE
from .reuse import REUSE
from .stability import STABILITY

POLICIES = {
    "interval": INTERVAL,
    "mask": MASK,
    "first_block": FIRST_BLOCK,
    "accumulated": ACCUMULATED,
    "magnitude": MAGNITUDE,
    "rate": RATE,
    "stability": STABILITY,
    "budget": BUDGET,
}
FORECASTS = {"reuse": REUSE, "newton": NEWTON, "adams": ADAMS, "exponential": EXPONENTIAL, "chebyshev": CHEBYSHEV}
