"""The guidance to try first: what measured best for this kind of model, number of steps and scale.

The choices are data, smart.json, made by ``tools.choose_guidance`` on both bundled models: the skipping rule that changes least among
those that save a given share of evaluations, and above a scale the shaping rule with the best pictures.
"""

import json
from pathlib import Path

from . import RULES
from .skipping import SKIPS

CHOICES = json.loads(Path(__file__).with_name("smart.json").read_text("utf-8"))  # {"ve" or "flow": {"skipping", "shaping"}}
SAVINGS = {"nothing": 0.0, "a little": 0.2, "balanced": 0.3, "much": 0.38}  # least share of evaluations saved, by the user's word


def choice(path, steps, scale, saving, elements):
    """[(rule, knobs), ...] for a run of so many steps at this CFG scale; saving is a key of ``SAVINGS``.

    elements: how many numbers one latent has. A norm_threshold was measured on latents of a row's "elements" and grows with their root.
    """
    rows = CHOICES["flow" if path.is_flow else "ve"]
    found = []
    if saving != "nothing":
        fitting = [row for row in rows["skipping"] if row["saving"] == saving]
        row = max((row for row in fitting if row["steps"] <= steps), key=lambda row: row["steps"], default=fitting[0])
        found.append((SKIPS[row["rule"]], row["knobs"]))
    for row in rows["shaping"]:
        if scale >= row["from scale"]:
            knobs = dict(row["knobs"])
            if "norm_threshold" in knobs:
                knobs["norm_threshold"] = min(knobs["norm_threshold"] * (elements / row["elements"]) ** 0.5, 1000.0)
            found.append((RULES[row["rule"]], knobs))
    return found
