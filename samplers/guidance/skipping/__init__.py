"""Every skipping rule, by name."""

from .adaptive import ADAPTIVE
from .interval import INTERVAL
from .periodic import PERIODIC

SKIPS = {"adaptive": ADAPTIVE, "interval": INTERVAL, "every_nth": PERIODIC}
