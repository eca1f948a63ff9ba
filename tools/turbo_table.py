"""Writes docs/turbo.md: the table of the turbo profiles, from their data. ``python -m tools.turbo_table``."""

import json

from comfyui_distillery.samplers.turbo import BASES, load

from . import ROOT

PROFILES = ROOT / "samplers" / "turbo" / "profiles"
PAGE = ROOT / "docs" / "turbo.md"
TITLES = {  # file: heading, in the order of the page
    "add": "ADD: SD-Turbo, SDXL-Turbo",
    "ladd": "LADD: SD3-Turbo, SD 3.5 Large Turbo, Flux schnell",
    "lcm": "LCM and LCM-LoRA",
    "tcd": "TCD",
    "hyper-sd": "Hyper-SD",
    "sdxl-lightning": "SDXL-Lightning",
    "dmd2": "DMD2",
    "pcm": "PCM",
    "flash-diffusion": "Flash Diffusion",
    "rectified": "InstaFlow and Rectified Diffusion",
    "one-step": "One step: SwiftBrush, SiD-LSG",
    "consistency": "Continuous-time consistency: SANA-Sprint, rCM",
    "flux2": "Flux.2",
    "qwen-image": "Qwen-Image",
    "z-image": "Z-Image",
    "wan": "Wan: LightX2V, CausVid, Self-Forcing",
    "ltx": "LTX-Video and LTX-2",
    "hunyuan": "HunyuanVideo",
    "chroma": "Chroma",
    "others": "Others",
    "shapes": "The bundled students",
}
INTRODUCTION = """# Turbo: distilled models and how they are sampled

A distilled model knows its own way down: which noise levels, with which sampler, shift and guidance. The profiles below are that
way for every public family that ComfyUI can load, as data in [samplers/turbo/profiles](../samplers/turbo/profiles). *Turbo Sampling*,
*Turbo KSampler*, *Turbo Check* and *Load Turbo LoRA* use them. This page is written by `python -m tools.turbo_table`; a test
keeps it up to date.

How to read the table:

- **Steps**: those offered; the usual number in bold.
- **Noise levels**: the levels at which the network is evaluated. *Timesteps* count from 0 to 999 in the training table; *levels* of a
  flow go from 1 to 0 before the shift; *sigmas* are as ComfyUI counts them. A rule has a name: *trailing* (even, from the last timestep;
  on flow 1, 1 - 1/n, ...), *lcm* (LCMScheduler's), *linspace* (evenly down to the last level, as SD3's pipeline),
  *beta* (use_beta_sigmas of FlowMatchEulerDiscreteScheduler).
- **Knows**: *these* means that the student was trained at these levels only. Below denoise 1 it then gets those at or below that share
  of its time, never another: four steps of DMD2 at denoise 0.5 are its timesteps 499 and 249. *Any* level: the last share of the steps,
  as diffusers' image-to-image pipelines take it; with the rule *lcm*, all steps within the share.
- **CFG**: the usual scale, and what the student bears. Where it is never above 1, a negative prompt has no effect.
- **Not confirmed**: fields that neither diffusers 0.42.1, nor a workflow that ComfyUI ships, nor firm knowledge of the paper or model card
  confirmed. The nodes show them too. diffusers and the workflows were read; papers and model cards are named from knowledge of them.

What is proved: `tests/test_turbo_trajectory.py` compares every timestep and noise level with the scheduler of diffusers that the family is
published with, parts of a run with the image-to-image pipelines; `tests/test_turbo_detect.py` tells families by published file names
and by the key layouts of kohya, diffusers and ComfyUI; `tests/host/test_turbo_layouts.py` does so with every name that ComfyUI knows
for the layers of networks of the real sizes, and compares noise levels with the schedulers of the workflows that ComfyUI ships;
`tests/test_turbo_profiles.py` checks every field.
"""
HEAD = "| key | what | for | steps | noise levels | knows | shift | sampler | CFG | strength | licence | sources | notes, not confirmed |"
FORMS = {"checkpoint": "checkpoint", "lora": "LoRA", "both": "checkpoint and LoRA"}


def page():
    """The text of docs/turbo.md."""
    profiles = load(PROFILES)
    parts = [INTRODUCTION]
    for file, title in TITLES.items():
        keys = [entry["key"] for entry in json.loads((PROFILES / f"{file}.json").read_text("utf-8"))]
        rule = "|" + "---|" * (HEAD.count("|") - 1)
        parts.append("\n".join([f"## {title}", "", HEAD, rule, *(row(profiles[key]) for key in keys), ""]))
    return "\n".join(parts)


def row(profile):
    strength = "" if profile.form == "checkpoint" else f"{profile.strength:g}"
    cells = [
        f"`{profile.key}`", f"{profile.title}; {FORMS[profile.form]}", BASES[profile.base].title, steps(profile), levels(profile),
        "these" if profile.trained == "listed" else "any", shift(profile), sampler(profile), cfg(profile), strength, profile.licence,
        "; ".join(profile.sources), remarks(profile),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def steps(profile):
    first, last = profile.steps[0], profile.steps[-1]
    if len(profile.steps) > 4 and last - first == len(profile.steps) - 1:
        return f"{first} to {last}, **{profile.default_steps}**"
    return ", ".join(f"**{count}**" if count == profile.default_steps else str(count) for count in profile.steps)


def levels(profile):
    if profile.spacing:
        return profile.spacing
    return f"{profile.unit} " + "; ".join(", ".join(f"{point:.4g}" for point in profile.points[count]) for count in profile.steps)


def shift(profile):
    if profile.shift is None:
        return "the model's own" if profile.is_flow and profile.unit != "sigmas" else ""
    return f"{profile.shift:.4g}" if isinstance(profile.shift, float | int) else "by size"


def sampler(profile):
    knobs = ", ".join(f"{name} {value}" for name, value in profile.knobs.items())
    return f"`{profile.sampler}`" + (f" ({knobs})" if knobs else "")


def cfg(profile):
    low, high = profile.cfg_range
    bears = f", {low:g} to {high:g}" if low < high else ""
    embedded = f"; embedded {profile.guidance:g}" if profile.guidance is not None else ""
    return f"{profile.cfg:g}{bears}{embedded}"


def remarks(profile):
    boundary = f"High noise at and above sigma {profile.boundary:g}." if profile.boundary else ""
    predicts = f"Predicts {profile.prediction}." if profile.prediction != BASES[profile.base].prediction else ""
    unavailable = f"**Not offered**: {profile.unavailable}." if profile.unavailable else ""
    unconfirmed = f"Not confirmed: {', '.join(profile.unconfirmed)}." if profile.unconfirmed else ""
    return " ".join(filter(None, [unavailable, predicts, boundary, profile.note, unconfirmed]))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
