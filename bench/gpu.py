"""Seconds per step and peak memory of full-size architectures on a GPU, with and without our hooks."""

import functools
import gc

import torch

from . import Ratios, Result, Unavailable, caches, hosted
from .architectures import ARCHITECTURES, as_task
from .timing import duel

STEPS, TIMES = 10, 5
CACHES = {
    "SD1.5": ("automatic", "deep_branch"), "SDXL": ("automatic", "deep_branch"),
    "SD3.5-medium": ("automatic", "first_block", "taylor"), "Flux": ("automatic", "first_block", "taylor"),
}  # fmt: skip


def hooked(task):
    """{name: (sampler, model)} to be compared with core's euler on the bare model."""
    euler = hosted.core("euler")
    return {
        "Trace": (euler, hosted.run("Trace", model=task.model)[0]),
        "APG": (euler, hosted.run("ProjectedGuidance", model=task.model, method={"method": "apg"})[0]),
        "ghvb": (hosted.method("ghvb"), task.model),
    }


def peak_memory(function, device):
    """GiB that torch held at most during a call, weights included; None where it does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) / 2**30


def share(ratio, steps, skipped):
    """What a skipped step takes of a full one's seconds, from what the whole run takes of an uncached run's."""
    return (ratio * steps - (steps - skipped)) / skipped


def measure_one(name, device, tiny=False, steps=STEPS, times=TIMES):
    """The rows of one architecture: one for each of our hooks, and one for each cache that fits it, skipping all it can."""
    device, rows = torch.device(device), []
    task = as_task(name, device, tiny)
    sigmas, euler = task.sigmas(steps), hosted.core("euler")
    core = functools.partial(task.sample, euler, sigmas)
    reports, candidates = {}, hooked(task)
    for preset in CACHES[name]:
        model, reports[preset] = caches.always_skipping(task.model, preset)
        candidates[preset] = euler, model
    for candidate, (sampler, model) in candidates.items():
        ours = functools.partial(task.sample, sampler, sigmas, model)
        timed = duel(ours, core, times)
        peak, core_peak = peak_memory(ours, device), peak_memory(core, device)
        skipped = caches.skipped(reports[candidate]) if candidate in reports else 0
        rows.append({
            "architecture": name,
            "candidate": f"Cache, {candidate}" if candidate in reports else candidate,
            "s/step": timed["seconds"] / steps,
            "core s/step": timed["baseline seconds"] / steps,
            **{column: timed[column] for column in ("ratio", "low", "high")},
            "skipped": skipped,
            "skipped/full step": share(timed["ratio"], steps, skipped) if skipped else None,
            "peak GiB": peak,
            "core peak GiB": core_peak,
        })  # fmt: skip
    return rows


def measure():
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA GPU is at hand.")
    hosted.node_classes()
    import comfy.model_management

    rows = []
    for name in ARCHITECTURES:
        rows += measure_one(name, comfy.model_management.get_torch_device())
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
    return Result(
        "What does a step take on full-size networks, in time and memory, and what do our hooks add? Goal: at most 1.01. And a step that "
        "a cache skips? Goal: at most 0.03 of a full one, where the whole prediction is skipped; other caches run some blocks.",
        f"Networks from ComfyUI's own model classes, fp16 (UNets) or bf16, random weights, all on the GPU; one picture of 512 x 512 "
        f"(SD1.5) or 1024 x 1024, CFG with both conditions in one call (Flux: distilled guidance, one condition, so that APG has "
        f"nothing to do). {STEPS} steps, {TIMES} interleaved pairs after one untimed run each; s/step is the median run divided by "
        "its steps. A cache skips all it can after the first three; skipped/full step is worked out from the ratio. Peak: the most that "
        "torch held, weights included; what a cache has above core is what it keeps. Pictures of random weights mean nothing, so none "
        "are compared. The picture shows the hooks that skip nothing.",
        rows,
        Ratios(("architecture", "candidate"), "ratio", "low", "high", goal=1.01),
        drawn=[row for row in rows if not row["skipped"]],
    )
