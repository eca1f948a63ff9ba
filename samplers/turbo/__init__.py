"""How to sample with every public distilled model family that ComfyUI can load: profiles, as data, and what follows from them."""

import json
from pathlib import Path

from .bases import BASES, bases_of_model
from .check import Problem, problems
from .detect import base_of_lora, candidates
from .profile import Shift, TurboProfile, from_entry
from .trajectory import sigmas_of

__all__ = [
    "BASES", "PROFILES", "PUBLISHED", "Problem", "Shift", "TurboProfile", "base_of_lora", "bases_of_model", "candidates", "from_entry",
    "load", "problems", "sigmas_of",
]  # fmt: skip


def load(folder):
    """{key: TurboProfile} of the JSON files in a folder, each a list of entries. ValueError for a key that comes twice."""
    profiles = {}
    for path in sorted(Path(folder).glob("*.json")):
        for entry in json.loads(path.read_text("utf-8")):
            profile = from_entry(entry)
            if profile.key in profiles:
                raise ValueError(f"turbo profile {profile.key}: it is in {path.name} and was read before: each key comes once.")
            profiles[profile.key] = profile
    return profiles


PUBLISHED = load(Path(__file__).with_name("profiles"))
PROFILES = {key: profile for key, profile in PUBLISHED.items() if not profile.unavailable}  # what ComfyUI can sample
