"""Caches that do nothing, or nothing else, for timing what a cache itself costs."""

from . import hosted

FEW = 1e-4  # a strength at which nothing is ever near enough to be skipped
EVALUATED = 3  # steps before the first skip: as many as a parabola needs


def never_skipping(model, preset, steps):
    """The preset's cache, which measures, keeps and decides at each of so many steps, and always runs."""
    from comfyui_distillery.samplers.caching.presets import PRESETS

    chosen = PRESETS[preset]
    if chosen.policy != "interval":
        return hosted.run("Cache", model=model, strength=FEW, preset=preset)[0]
    return from_parts(model, chosen, {"policy": "mask"}, mask=(True,) * steps)[0]


def always_skipping(model, preset):
    """(the preset's cache, which skips every step after the first three as long as its policy's largest setting allows, its report)."""
    from comfyui_distillery.samplers.caching import POLICIES
    from comfyui_distillery.samplers.caching.presets import PRESETS

    chosen = PRESETS[preset]
    (largest,) = (knob.max for knob in POLICIES[chosen.policy].knobs if knob.name == chosen.scaled)
    limits = {"first_steps": EVALUATED, "last_steps": 0, "most_in_a_row": 0, "min_steps": 1}
    return from_parts(model, chosen, {"policy": chosen.policy, chosen.scaled: largest, **limits})


def from_parts(model, preset, policy, **given):
    return hosted.run(
        "CacheParts", model=model, policy=policy, forecast={"forecast": preset.forecast, **preset.forecast_knobs},
        site={"site": preset.site, **preset.site_knobs}, **given,
    )  # fmt: skip


def skipped(report):
    """How many steps of the last run a cache stood in for."""
    return sum(row.get("decision") == "skip" for row in report.runs[-1]["steps"])
