"""Every skipping rule, by name."""

from .adaptive import ADAPTIVE
from .interval import INTERVAL
from .linear import LINEAR
from .low_high import LOW_HIGH
from .periodic import PERIODIC

SKIPS = {"adaptive": ADAPTIVE, "interval": INTERVAL, "every_nth": PERIODIC, "linear": LINEAR, "low_high": LOW_HIGH}
