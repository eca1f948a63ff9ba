"""LoRA files: the dialects other programs read, what a file says about itself, and LoRAs merged, resized and swept."""

from .combine import Resized, merge, resize, scale, sweep
from .dialects import DIALECTS, Part, cast, from_file, native_names, to_file
from .files import checked_name, read, write
from .fingerprint import difference, fingerprint
from .profile import Profile, metadata, read_json, read_profile

__all__ = [
    "DIALECTS", "Part", "Profile", "Resized", "cast", "checked_name", "difference", "fingerprint", "from_file", "merge",
    "metadata", "native_names", "read", "read_json", "read_profile", "resize", "scale", "sweep", "to_file", "write",
]  # fmt: skip
