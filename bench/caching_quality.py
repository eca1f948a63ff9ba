"""What caches do to pictures: are captions still drawn right, and is the set of pictures as good?"""

from dataclasses import replace

from . import Ratios, Result, cache_rivals, hosted
from .examination import Examination, compared
from .work import Work

MODELS = ("shapes-dit", "shapes-unet")
STEPS, SCALE = 20, 4.0
OURS = {  # preset and strengths; rivals are matched to the first
    "shapes-dit": (("automatic", 0.5), ("automatic", 1.0), ("taylor", 0.5)),
    "shapes-unet": (("automatic", 0.5), ("automatic", 1.0), ("deep_branch", 0.5)),
}
LADDER = (0.03, 0.05, 0.08, 0.12, 0.17, 0.25, 0.35, 0.5, 0.8)  # of a rival's thresholds
INTERVALS = (2, 3, 4, 5, 7, 10)


def rivals(name, model, coefficients):
    """{rival: {setting: model}}, settings from a small saving to a large one."""
    ladders = {
        "rival: LazyCache": {t: cache_rivals.core_cache(model, "LazyCache", t) for t in LADDER},
        "rival: First Block Cache": {t: cache_rivals.first_block_cache(model, t) for t in LADDER},
    }
    if name == "shapes-dit":
        ladders["rival: TeaCache, fitted"] = {t: cache_rivals.tea_cache(model, t, coefficients) for t in LADDER}
    else:
        ladders["rival: DeepCache"] = {n: cache_rivals.deep_cache(model, n) for n in INTERVALS}
    return ladders


def nearest(ladder, task, steps, work, saved):
    """(setting, model) of the ladder that saves most nearly that share in a run of the task: tried upwards until one saves more."""
    sampler, sigmas, tried = hosted.core("euler"), task.sigmas(steps), {}
    work.take()
    task.sample(sampler, sigmas)
    whole = work.take()
    for setting, model in ladder.items():
        task.sample(sampler, sigmas, model)
        tried[setting] = 1 - work.take() / whole
        if tried[setting] >= saved:
            break
    best = min(tried, key=lambda setting: abs(tried[setting] - saved))
    return best, ladder[best]


def examine(name, count, batch, steps):
    """Rows of one model: uncached, our presets, and the rivals at about the saving of the first of ours."""
    exam = Examination(name, count, batch, steps)
    plain = exam.bundled.model
    task = replace(hosted.bundled(name, pictures=4), model=plain)
    coefficients = cache_rivals.fitted_coefficients(task, hosted.core("euler"), task.sigmas(steps)) if name == "shapes-dit" else None
    with Work(plain) as work:
        exam.draw(plain, SCALE, 0)
        whole = work.take()

        def saved():
            return 1 - work.take() / whole

        def add(cache, setting, model):
            found = exam.sit(model, SCALE, saved)
            rows.append(compared({"model": name, "cache": cache, "setting": setting}, found, full))

        rows, full = [], exam.sit(plain, SCALE, saved)
        rows.append(compared({"model": name, "cache": "uncached", "setting": ""}, full, full))
        for preset, strength in OURS[name]:
            add(preset, strength, hosted.run("Cache", model=plain, strength=strength, preset=preset)[0])
        for rival, ladder in rivals(name, plain, coefficients).items():
            add(rival, *nearest(ladder, task, steps, work, rows[1]["saved"]))
    return rows


def measure(models=MODELS, count=500, batch=20, steps=STEPS):
    return result_of([line for name in models for line in examine(name, count, batch, steps)], count, steps)


def result_of(rows, count, steps):
    seen = []
    for name in dict.fromkeys(row["model"] for row in rows):
        ours = [row for row in rows if row["model"] == name and row["cache"] != "uncached" and not row["cache"].startswith("rival")]
        seen += [f"{name}: {row['cache']} at {row['setting']:g} saves {row['saved']:.0%} and loses {row['lost']:.1f} points" for row in ours]
        lost = [row["lost"] for row in rows if row["model"] == name and row["cache"].startswith("rival")]
        seen.append(f"rivals at about the saving of the first of these lose {min(lost):.1f} to {max(lost):.1f}")
    return Result(
        f"Are captions still drawn right with a cache, and how do pictures fare beside those of other caches? {'; '.join(seen)}.",
        f"{count} fresh captions that name everything, the same captions and seeds for every cache; {steps} steps of core's Euler, guidance "
        f"{SCALE:g}, batches of one decision. Saved: share of the multiplications in the network's linear and convolution layers; each "
        "rival at that of its settings whose saving is nearest to the first of ours. Right: the judge reads every attribute of every "
        "object as the caption says; lost: points of that against uncached, low and high a standard error of it to each side; FID and "
        "KID: on the judge's features, to twice as many fresh drawings. Rivals are written from their descriptions; TeaCache's polynomial "
        "is fitted to the model, which its authors do too; LazyCache is core's own.",
        rows,
        Ratios(("model", "cache", "setting"), "lost", "low", "high"),
    )
