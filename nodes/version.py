"""Refuses a ComfyUI older than the pack needs, in words: imported before anything that such a one lacks."""

import re

from comfyui_version import __version__

NEEDED = (0, 30, 0)


def check(version):
    """ImportError unless ``version``, such as "0.30.0", is new enough."""
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise ImportError(f"ComfyUI-Distillery needs ComfyUI {needed} or newer and this is {version}: update ComfyUI.")


check(__version__)
