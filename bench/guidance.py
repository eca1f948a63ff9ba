"""Fewer unconditional evaluations: how many does each rule save, and how far does the picture move from full guidance?"""

import math
from dataclasses import replace
from itertools import pairwise

from . import Lines, Result, hosted, rivals
from .timing import relative_error

MODELS = ("shapes-dit", "shapes-unet")
SCALES = (3.0, 5.0, 8.0)
STEPS = (12, 20, 30)
SAVED = (0.2, 0.3, 0.4)  # shares of all evaluations at which the table compares
PUBLISHED = {"min_guided": 1, "instead": "nothing", "recheck": 0}  # the adaptive rule as its paper has it
DROPPED, EXTRAPOLATED, RIVAL, OURS = "dropped after some steps", "linear", "rival: asagi4's rule", "adaptive"


def ladder(steps):
    """{name: settings of Adaptive Guidance, from a small saving to a large one}; a number is a rival's threshold."""
    dropped = [PUBLISHED | {"threshold": 1.01, "max_guided": round(steps * share)} for share in (0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)]
    return {
        DROPPED: [("adaptive", knobs) for knobs in dropped],
        RIVAL: [(None, threshold) for threshold in (0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.95, 0.8)],
        "adaptive, as published": [("adaptive", PUBLISHED | {"threshold": t}) for t in (0.9995, 0.999, 0.998, 0.995, 0.99, 0.95, 0.8)],
        OURS: [("adaptive", {"min_guided": n, "recheck": r}) for n, r in ((8, 2), (6, 3), (4, 3), (4, 4), (4, 6), (3, 6), (2, 8), (2, 12))],
        "every_nth": [("every_nth", {"every": n}) for n in (2, 3, 4, 5, 6)],
        "low_high": [("low_high", {"every": n}) for n in (2, 3, 4, 5, 6)],
        EXTRAPOLATED: [("linear", {"every": n}) for n in (2, 3, 4, 5, 6)],
        "interval": [("interval", {"start": 0.0, "end": end}) for end in (0.8, 0.6, 0.5, 0.4, 0.3, 0.2)],
    }


def skipping(model, rule, knobs):
    """(the model with this rule, a function that tells the last run's unconditional evaluations of the whole batch)."""
    if rule is None:
        guided, counted = rivals.adaptive_guider(model, knobs)
        return guided, lambda: counted.pop("count") / len(counted.pop("resting"))
    guided, report = hosted.run("SkipGuidance", model=model, method={"method": rule, **knobs})
    return guided, unconditional_of(report)


def unconditional_of(report):
    return lambda: report.runs[-1]["totals"]["branches"].get("uncond", 0)


def sweep(name, scale, steps, pictures):
    """Rows of one model at one scale and number of steps, core's Euler."""
    task = replace(hosted.bundled(name, pictures), cfg=scale)
    sampler, sigmas = hosted.core("euler"), task.sigmas(steps)
    full = task.sample(sampler, sigmas)
    rows = []
    for line, settings in ladder(steps).items():
        for rule, knobs in settings:
            model, evaluations = skipping(task.model, rule, knobs)
            error = relative_error(task.sample(sampler, sigmas, model), full)
            saved = (1 - evaluations() / steps) / 2
            rows.append({"model": name, "scale": scale, "steps": steps, "rule": line, "knobs": knobs, "saved": saved, "error": error})
    return rows


def error_at(points, saved):
    """The error at a saving, on a line through the points (saved, error) in log error; None outside them."""
    points = sorted(points)
    for (a, low), (b, high) in pairwise(points):
        if a <= saved <= b and low > 0 and high > 0:
            share = (saved - a) / (b - a) if b > a else 0
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return None


def typical(rows, saved):
    """The geometric mean, over scales and steps, of the error at a saving, with how many of the runs it is of; None for none."""
    runs = {(row["scale"], row["steps"]) for row in rows}
    errors = [error_at([(r["saved"], r["error"]) for r in rows if (r["scale"], r["steps"]) == run], saved) for run in runs]
    found = [error for error in errors if error]
    return (math.exp(sum(map(math.log, found)) / len(found)), len(found)) if found else (None, 0)


def measure(scales=SCALES, steps=STEPS, pictures=4):
    rows = [row for name in MODELS for scale in scales for n in steps for row in sweep(name, scale, n, pictures)]
    return result_of(rows, len(scales) * len(steps), pictures)


def result_of(rows, runs, pictures):
    table, goals = [], []
    for name in MODELS:
        at = {}
        for line in dict.fromkeys(row["rule"] for row in rows):
            some = [row for row in rows if (row["model"], row["rule"]) == (name, line)]
            at[line] = {saved: typical(some, saved) for saved in SAVED}
            cells = {f"error at {saved:.0%} saved": worded(*at[line][saved], runs) for saved in SAVED}
            table.append({"model": name, "rule": line, **cells})
        dropped, extrapolated = at[DROPPED][0.3][0], at[EXTRAPOLATED][0.4][0]
        ours, theirs = at[OURS][0.3][0], at[RIVAL][0.3][0]
        goals.append(f"{name}: {ratio(extrapolated, dropped)} and {ratio(ours, theirs)}")
    return Result(
        "What do rules that skip the negative prompt's evaluation save, and how far is the latent from full guidance? Goals: the "
        "extrapolated branch saves 40 % at no more error than dropping it at 30 %, and Adaptive Guidance has less error than "
        f"asagi4's rule at equal evaluations (30 %). Ratios of these errors: {'; '.join(goals)}.",
        f"{pictures} prompts, guidance {', '.join(sorted({format(row['scale'], 'g') for row in rows}))}, "
        f"{', '.join(map(str, sorted({row['steps'] for row in rows})))} steps of core's Euler. Saved: share of all evaluations, "
        "positive and negative, of which at most half can be. Error: norm of the latent's difference over its norm. The table has the "
        "geometric mean over scales and steps of the error at a saving, interpolated between settings in log error; in brackets, of "
        f"how many of the {runs} runs, where a rule's settings do not reach that saving in all. asagi4's rule is written from its "
        "description, every picture deciding for itself. How pictures fare: guidance_quality.",
        rows,
        Lines("saved", "error", "rule", "at", rivals="rival"),
        table,
        [row | {"at": f"{row['model']}, guidance {row['scale']:g}, {row['steps']} steps"} for row in rows if row["steps"] == 20 and row["scale"] == 5],
    )  # fmt: skip


def ratio(one, other):
    return f"{one / other:.2f}" if one and other else "not measured"


def worded(error, count, runs):
    if error is None:
        return "-"
    return f"{error:.3f}" + (f" ({count})" if count < runs else "")
