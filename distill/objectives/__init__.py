"""Every training objective, by name."""

from .consistency import CONSISTENCY
from .gft import GFT
from .guidance import GUIDANCE
from .objective import Objective
from .phased import PHASED
from .progressive import PROGRESSIVE
from .reflow import REFLOW
from .trajectory import TRAJECTORY

__all__ = ["OBJECTIVES", "Objective"]

OBJECTIVES = {
    "guidance": GUIDANCE,
    "phased": PHASED,
    "progressive": PROGRESSIVE,
    "consistency": CONSISTENCY,
    "trajectory": TRAJECTORY,
    "reflow": REFLOW,
    "gft": GFT,
}
