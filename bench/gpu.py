"""Seconds per step and peak memory of full-size architectures on a GPU, with and without our hooks."""

import functools
import gc

import torch

from . import Ratios, Result, Unavailable, hosted
from .architectures import ARCHITECTURES, as_task
from .timing import duel

STEPS, TIMES = 10, 5


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


def measure_one(name, device, tiny=False, steps=STEPS, times=TIMES):
    """The rows of one architecture: one for each of our hooks."""
    device, rows = torch.device(device), []
    task = as_task(name, device, tiny)
    sigmas = task.sigmas(steps)
    core = functools.partial(task.sample, hosted.core("euler"), sigmas)
    for hook, (sampler, model) in hooked(task).items():
        ours = functools.partial(task.sample, sampler, sigmas, model)
        timed = duel(ours, core, times)
        rows.append({
            "architecture": name,
            "candidate": hook,
            "s/step": timed["seconds"] / steps,
            "core s/step": timed["baseline seconds"] / steps,
            **{column: timed[column] for column in ("ratio", "low", "high")},
            "peak GiB": peak_memory(ours, device),
            "core peak GiB": peak_memory(core, device),
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
        "What does a step take on full-size networks, in time and memory, and what do our hooks add? Goal: at most 1.01.",
        f"Networks from ComfyUI's own model classes, fp16 (UNets) or bf16, random weights, all on the GPU; one picture of 512 x 512 "
        f"(SD1.5) or 1024 x 1024, CFG with both conditions in one call (Flux: distilled guidance, one condition, so that APG has "
        f"nothing to do). {STEPS} steps, {TIMES} interleaved pairs after one untimed run each; s/step is the median run divided by "
        "its steps. Peak: the most that torch held, weights included. Pictures of random weights mean nothing, so none are compared.",
        rows,
        Ratios(("architecture", "candidate"), "ratio", "low", "high", goal=1.01),
    )
