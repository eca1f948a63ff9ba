"""The profiles of every published family, read from profiles/."""

import json
from pathlib import Path

from .profile import from_entry


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
