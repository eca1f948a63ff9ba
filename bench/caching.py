"""Our caches beside other packs': how much faster, and how far are latent and picture from the uncached run?"""

import math
import statistics
import time

from comfyui_distillery.measure.pictures import fidelity

from . import Lines, Result, cache_rivals, hosted
from .timing import relative_error
from .work import Work

TRANSFORMER, UNET = MODELS = ("shapes-dit", "shapes-unet")
SAMPLERS, STEPS, PICTURES = ("euler", "dpmpp_2m"), (20, 50), 4
BETWEEN = 6  # cached runs between two uncached ones
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
PRESETS = {
    TRANSFORMER: ("automatic", "rate", "first_block", "magnitude", "taylor"), UNET: ("automatic", "rate", "magnitude", "deep_branch"),
}  # fmt: skip
BUDGETS = (0.3, 0.5, 0.8)  # for Cache from Parts: beyond what the slider of automatic offers
THRESHOLDS = {  # of rivals
    TRANSFORMER: {
        "EasyCache": (0.05, 0.1, 0.2, 0.4), "LazyCache": (0.05, 0.1, 0.2, 0.4), "First Block Cache": (0.08, 0.12, 0.18, 0.3),
        "TeaCache, as it is": (0.1, 0.2, 0.35), "TeaCache, fitted": (0.035, 0.06, 0.11),
    },
    UNET: {
        "EasyCache": (0.05, 0.1, 0.2, 0.4), "LazyCache": (0.05, 0.1, 0.2, 0.4), "First Block Cache": (0.2, 0.3, 0.4, 0.55),
    },
}  # fmt: skip
DEEP = ((2, 1), (3, 1), (5, 1), (3, 2), (3, 3))  # DeepCache's intervals and depths
CALIBRATION = ("a large green circle on the left on a white background", "a small purple triangle at the bottom on a yellow background")
ERRORS, DECIBELS = (0.05, 0.1, 0.2), 30  # at which the table compares


def candidates(task, name, coefficients):
    """[(line, setting, model)]; coefficients are TeaCache's, fitted to this model."""
    found = []
    for preset in PRESETS[name]:
        for strength in STRENGTHS:
            found.append((preset, strength, hosted.run("Cache", model=task.model, strength=strength, preset=preset)[0]))
    for budget in BUDGETS:
        (model, _) = hosted.run(
            "CacheParts", model=task.model, policy={"policy": "budget", "budget": budget, "first_steps": 3, "most_in_a_row": 0},
            forecast={"forecast": "newton", "order": 1, "reach": 0.3}, site={"site": "prediction"},
        )  # fmt: skip
        found.append(("from parts: budget", budget, model))
    makes = {
        "EasyCache": lambda t: cache_rivals.core_cache(task.model, "EasyCache", t),
        "LazyCache": lambda t: cache_rivals.core_cache(task.model, "LazyCache", t),
        "First Block Cache": lambda t: cache_rivals.first_block_cache(task.model, t),
        "TeaCache, as it is": lambda t: cache_rivals.tea_cache(task.model, t),
        "TeaCache, fitted": lambda t: cache_rivals.tea_cache(task.model, t, coefficients),
    }
    for rival, thresholds in THRESHOLDS[name].items():
        found += [(f"rival: {rival}", threshold, makes[rival](threshold)) for threshold in thresholds]
    if name == UNET:
        found += [("rival: DeepCache", f"every {n}, depth {d}", cache_rivals.deep_cache(task.model, n, d)) for n, d in DEEP]
    return found


def alternating(task, models, sampler, sigmas):
    """One (latent, seconds, work) for each of these models, None being the task's own, and the uncached runs among them: one at the
    beginning, one at the end, and one after every few others.
    """
    cached, uncached, sources = [], [], []
    with Work(task.model) as work:

        def run(model=None):
            began = time.perf_counter()
            latent = task.sample(sampler, sigmas, model)
            return latent, time.perf_counter() - began, work.take()

        for number, model in enumerate(models):
            if number % BETWEEN == 0:
                uncached.append(run())
            cached.append(run(model))
            sources.append(len(uncached) - 1)
        uncached.append(run())
    return cached, uncached, sources


def compared(picture, models, sampler, sigmas, decode):
    """Of each model's run beside uncached ones: {"times faster", "error", "PSNR", "saved"}."""
    cached, uncached, before = alternating(picture, models, sampler, sigmas)
    full, _, whole = uncached[0]
    shown = decode(full)
    for (latent, seconds, work), number in zip(cached, before):
        beside = (uncached[number][1] + uncached[number + 1][1]) / 2
        yield {
            "times faster": beside / seconds, "error": relative_error(latent, full),
            "PSNR": float(fidelity(shown, decode(latent))["psnr"]), "saved": 1 - work / whole,
        }  # fmt: skip


def sweep(name, solver, steps, pictures=PICTURES):
    """Rows of one model, sampler and number of steps, each over pictures of different prompts, sampled one by one."""
    task, sampler, decode = hosted.bundled(name, pictures), hosted.core(solver), hosted.decoder(name)
    sigmas, coefficients = task.sigmas(steps), None
    if name == TRANSFORMER:
        calibration = hosted.bundled(name, len(CALIBRATION), CALIBRATION, seed=1)
        coefficients = cache_rivals.fitted_coefficients(calibration, sampler, sigmas)
    labels, models = zip(*((labels, model) for *labels, model in candidates(task, name, coefficients)))
    task.alone(0).sample(sampler, sigmas)  # untimed: what a first run sets up
    found = zip(*(compared(task.alone(i), models, sampler, sigmas, decode) for i in range(pictures)))
    return [
        {"model": name, "problem": f"{name}, {solver}, {steps} steps", "cache": line, "setting": setting, **summary(runs)}
        for (line, setting), runs in zip(labels, found)
    ]


def summary(runs):
    """Of one candidate's runs: median and quartiles of its speed, means of the rest."""
    low, middle, high = statistics.quantiles([run["times faster"] for run in runs], n=4, method="inclusive")
    means = {column: statistics.mean(run[column] for run in runs) for column in ("error", "PSNR", "saved")}
    return {"times faster": middle, "low": low, "high": high, **means}


def fastest(rows, error=math.inf, decibels=-math.inf):
    """The greatest speed of these rows at no more than this error and no less than this PSNR; 1, no cache, if none is that near."""
    return max((row["times faster"] for row in rows if row["error"] <= error and row["PSNR"] >= decibels), default=1.0)


def measure(models=MODELS, samplers=SAMPLERS, steps=STEPS, pictures=PICTURES):
    rows = [row for name in models for solver in samplers for count in steps for row in sweep(name, solver, count, pictures)]
    return result_of(rows, pictures)


def result_of(rows, pictures):
    limits = {f"at error {error:g}": {"error": error} for error in ERRORS} | {f"at {DECIBELS} dB": {"decibels": DECIBELS}}
    table, ratios, at_decibels = [], {}, {}
    for problem, name in dict.fromkeys((row["problem"], row["model"]) for row in rows):
        best = {}
        for line in dict.fromkeys(row["cache"] for row in rows if row["problem"] == problem):
            some = [row for row in rows if (row["problem"], row["cache"]) == (problem, line)]
            best[line] = {column: fastest(some, **limit) for column, limit in limits.items()}
            table.append({"problem": problem, "cache": line, **best[line]})
        for column in limits:
            ours = max(speeds[column] for line, speeds in best.items() if not line.startswith("rival"))
            theirs = max(speeds[column] for line, speeds in best.items() if line.startswith("rival"))
            if "decibels" in limits[column]:
                at_decibels.setdefault(name, []).append((ours, theirs))
            else:
                ratios.setdefault(name, []).append(ours / theirs)
    seen = [
        f"{name}: at equal error {among(ratios[name])} times the speed of the best rival, {typical(ratios[name]):.2f} in the mean; at "
        f"{DECIBELS} dB {among([ours for ours, _ in at_decibels[name]])} times faster than uncached, the best rival "
        f"{among([theirs for _, theirs in at_decibels[name]])}"
        for name in ratios
    ]
    return Result(
        f"How many times faster is a run with a cache? Goals: on {TRANSFORMER}, at equal error, 1.3 times the speed of the best rival; on "
        f"{UNET} 2 times faster than uncached at a PSNR of {DECIBELS} dB. Seen of the best of our presets, over samplers, steps and "
        f"errors: {'; '.join(seen)}. What a cache costs that skips nothing: overhead.",
        f"CFG 4; {pictures} pictures of different prompts, sampled one by one. Times faster: seconds of the uncached runs before and after "
        f"over those of the cached one, of which no more than {BETWEEN} are between two uncached runs; the median over pictures, low and "
        "high its quartiles. Error: norm of the latent's difference from the uncached run over its norm; PSNR: of the decoded picture to "
        "the uncached one; saved: share of the multiplications in linear and convolution layers; means over pictures. The table has the "
        "fastest setting within that limit; 1.0 is none. Rivals: core's EasyCache, with the copy of the input that it needs on float32 "
        "flow models, and LazyCache; First Block Cache as WaveSpeed defines it for transformers and UNets, TeaCache with the identity "
        "and with a polynomial fitted to a calibration run of the same model, sampler and steps, and DeepCache at several intervals and "
        "depths, these written from their descriptions. What becomes of pictures: caching_quality.",
        rows,
        Lines("times faster", "error", "cache", "problem", rivals="rival"),
        table,
    )  # fmt: skip


def among(values):
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def typical(ratios):
    return math.exp(statistics.mean(map(math.log, ratios)))
