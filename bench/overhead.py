"""What our hooks and solvers cost beside core's, in a run of the bundled model."""

import functools

from . import Ratios, Result, caches, hosted
from .timing import duel

STEPS, TIMES = 20, 11
RIVALS = {"dpm_solver_pp": "dpmpp_2m", "unipc": "uni_pc_bh2", "deis": "deis", "per_step": "res_multistep", "sa_solver": "sa_solver"}
CACHES = {"shapes-dit": ("automatic", "rate", "first_block", "taylor"), "shapes-unet": ("automatic", "deep_branch")}


def measure(steps=STEPS, times=TIMES):
    task = hosted.bundled()
    import comfy.k_diffusion.sampling
    import comfy.samplers

    euler = hosted.core("euler")
    ipndm = comfy.samplers.KSAMPLER(comfy.k_diffusion.sampling.sample_ipndm, {"max_order": 2})
    guided = hosted.run("ProjectedGuidance", model=task.model, method={"method": "apg"})[0]
    watchful = hosted.run("SkipGuidance", model=task.model, method={"method": "adaptive", "threshold": 1.0})[0]
    pairs = {  # ours: (sampler, model), what it stands beside
        "Trace": ((euler, hosted.run("Trace", model=task.model)[0]), "core euler", euler),
        "APG": ((euler, guided), "core euler", euler),
        "Adaptive Guidance, nothing to skip": ((euler, watchful), "core euler", euler),
        "ghvb, order 2": ((hosted.method("ghvb", order=2.0), task.model), "core ipndm, order 2", ipndm),
        "lambda_ddim": ((hosted.method("lambda_ddim", lambda_c=0.0), task.model), "core euler", euler),
    }
    for name, rival in RIVALS.items():
        pairs[name] = (hosted.method(name), task.model), f"core {rival}", hosted.core(rival)
    sigmas, rows = task.sigmas(steps), []
    for name, ((sampler, model), rival, core) in pairs.items():
        ours = functools.partial(task.sample, sampler, sigmas, model)
        theirs = functools.partial(task.sample, core, sigmas)
        rows.append({"candidate": name, "baseline": rival, **duel(ours, theirs, times)})
    rows += [row for network, presets in CACHES.items() for row in cache_rows(network, presets, steps, times)]
    return Result(
        "How much longer does a run take with our hooks and solvers than with core's? Goal: at most 1.01.",
        f"shapes-dit unless said, {steps} steps, CFG 4, one picture; {times} interleaved pairs of runs in one process after one untimed run "
        "each. The ratio is the median of the pairs' ratios, low and high are its quartiles; 1 is no cost. The network is tiny, so "
        "that per-step costs show as they never would on a large one. The difference is of the results, relative to the "
        "baseline's: 0 is bit for bit the same. A cache with nothing to skip measures, keeps and decides, and runs every step. APG, and solvers that differ from core's by order or form, are meant to differ.",
        rows,
        Ratios(("candidate", "baseline"), "ratio", "low", "high", goal=1.01),
    )


def cache_rows(name, presets, steps, times):
    """A row for each cache that does all it does but skip, on one network."""
    task, euler, rows = hosted.bundled(name), hosted.core("euler"), []
    sigmas = task.sigmas(steps)
    for preset in presets:
        cached = caches.never_skipping(task.model, preset, steps)
        ours, theirs = functools.partial(task.sample, euler, sigmas, cached), functools.partial(task.sample, euler, sigmas)
        where = "" if name == "shapes-dit" else f" on {name}"
        rows.append({"candidate": f"Cache, {preset}, nothing to skip{where}", "baseline": "core euler", **duel(ours, theirs, times)})
    return rows
