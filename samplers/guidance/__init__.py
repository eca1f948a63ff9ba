"""Every guidance rule, by name."""

from .frequency import FREQUENCY
from .magnitude import MAGNITUDE_AWARE
from .projected import APG
from .rescale import RESCALE
from .rule import Rule
from .scale_schedule import SCALE_SCHEDULE
from .tangential import TCFG
from .threshold import DYNAMIC_THRESHOLD
from .zero_star import ZERO_STAR

__all__ = ["RULES", "Rule"]

RULES = {
    "apg": APG,
    "zero_star": ZERO_STAR,
    "tcfg": TCFG,
    "rescale": RESCALE,
    "dynamic_threshold": DYNAMIC_THRESHOLD,
    "magnitude_aware": MAGNITUDE_AWARE,
    "scale_schedule": SCALE_SCHEDULE,
    "frequency": FREQUENCY,
}
