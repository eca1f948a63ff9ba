"""Our caches beside core's: how much faster, and how far is the latent from the uncached run?"""

import math
import statistics
import time

from . import Lines, Result, hosted
from .timing import relative_error

MODELS = ("shapes-dit", "shapes-unet")
SAMPLERS = ("euler", "dpmpp_2m")
STEPS, TIMES = 25, 3
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
PRESETS = {"shapes-dit": ("automatic", "rate", "first_block", "accumulated", "taylor"), "shapes-unet": ("automatic", "rate", "deep_branch")}
THRESHOLDS = {"EasyCache": (0.05, 0.1, 0.2, 0.4), "LazyCache": (0.05, 0.1, 0.2, 0.4)}
ERRORS = (0.05, 0.1, 0.2)  # at which the table compares


def candidates(task, name):
    """[(line, setting, model)]. core's EasyCache writes over its input on float32 flow models: here it gets a copy to write on."""
    found = []
    for preset in PRESETS[name]:
        for strength in STRENGTHS:
            found.append((preset, strength, hosted.run("Cache", model=task.model, strength=strength, preset=preset)[0]))
    for node, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            kind = hosted.node_classes()[node]
            (model,) = kind.EXECUTE_NORMALIZED(
                model=with_copies(task.model), reuse_threshold=threshold, start_percent=0.15, end_percent=0.95, verbose=False
            ).args
            found.append((f"core {node}", threshold, model))
    return found


def with_copies(model):
    """A clone whose network is given a copy of its input: to no effect on anything but who writes over it."""
    from comfy.patcher_extension import WrappersMP

    model = model.clone()

    def diffusion_model(executor, x, *args, **kwargs):
        return executor(x.clone(), *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "copies", diffusion_model)
    return model


def sweep(name, solver, times, steps=STEPS):
    """Rows of one model and sampler: each candidate beside an uncached run just before it, ``times`` times."""
    task = hosted.bundled(name)
    sampler, sigmas = hosted.core(solver), task.sigmas(steps)
    full, rows = task.sample(sampler, sigmas), []
    for line, setting, model in candidates(task, name):
        latent, ratios = task.sample(sampler, sigmas, model), []
        for _ in range(times):
            began = time.perf_counter()
            task.sample(sampler, sigmas)
            between = time.perf_counter()
            task.sample(sampler, sigmas, model)
            ratios.append((between - began) / (time.perf_counter() - between))
        rows.append({
            "problem": f"{name}, {solver}", "cache": line, "setting": setting,
            "times faster": statistics.median(ratios), "error": relative_error(latent, full),
        })  # fmt: skip
    return rows


def fastest(rows, error):
    """The greatest speed of these rows at no more than this error; 1, no cache, if none is that near."""
    return max((row["times faster"] for row in rows if row["error"] <= error), default=1.0)


def measure(models=MODELS, samplers=SAMPLERS, times=TIMES, steps=STEPS):
    rows = [row for name in models for solver in samplers for row in sweep(name, solver, times, steps)]
    table, ratios = [], []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        best = {}
        for line in dict.fromkeys(row["cache"] for row in rows if row["problem"] == problem):
            some = [row for row in rows if (row["problem"], row["cache"]) == (problem, line)]
            best[line] = [fastest(some, error) for error in ERRORS]
            table.append({"problem": problem, "cache": line} | {f"at error {e:g}": v for e, v in zip(ERRORS, best[line])})
        for at in range(len(ERRORS)):
            ours = max(values[at] for line, values in best.items() if not line.startswith("core "))
            theirs = max(values[at] for line, values in best.items() if line.startswith("core "))
            ratios.append(ours / theirs)
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    return Result(
        "How many times faster is a run with a cache, at equal error? Goal: on the transformer 1.3 times the speed of the best rival. "
        f"Here the best of ours has {min(ratios):.2f} to {max(ratios):.2f} times the speed of core's best, {mean:.2f} in the mean.",
        f"{steps} steps, CFG 4, one picture; each setting runs {times} times, each beside an uncached run just before it, and the median of "
        "the ratios of their seconds counts. Error: norm of the latent's difference from the uncached run over its norm. The table "
        "has the fastest setting at no more than that error; 1.0 is none. Rivals: core's EasyCache and LazyCache, with the copy of the input "
        "that EasyCache needs on float32 flow models. Other packs' caches are not among them yet, nor are pictures judged.",
        rows,
        Lines("times faster", "error", "cache", "problem"),
        table,
    )
