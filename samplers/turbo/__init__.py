"""How to sample with every public distilled model family that ComfyUI can load: profiles, as data, and what follows from them."""

from .bases import BASES, bases_of_model
from .check import Problem, problems
from .ddcm import sample_ddcm
from .detect import base_of_lora, candidates
from .profile import Shift, TurboProfile, from_entry
from .published import PROFILES, PUBLISHED, load
from .trajectory import sigmas_of

__all__ = [
    "BASES", "PROFILES", "PUBLISHED", "Problem", "Shift", "TurboProfile", "base_of_lora", "bases_of_model", "candidates", "from_entry",
    "load", "problems", "sample_ddcm", "sigmas_of",
]  # fmt: skip
