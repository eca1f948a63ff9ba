"""What guidance rules do to pictures: are captions still drawn right, and is the set of pictures as good?"""

from . import Ratios, Result, hosted
from .examination import Examination, compared
from .guidance import MODELS, PUBLISHED, skipping, unconditional_of

STEPS, SCALE, HIGH = 20, 5.0, 9.0


def candidates():
    """{name: what ``bench.guidance.skipping`` takes}, at the usual scale."""
    return {
        "adaptive": ("adaptive", {}),
        "adaptive, published, to step 8": ("adaptive", PUBLISHED | {"threshold": 1.01, "max_guided": 8}),
        "rival: asagi4's rule, 0.995": (None, 0.995),
        "linear, every 3": ("linear", {"every": 3}),
        "linear, every 5": ("linear", {"every": 5}),
    }


def saved_of(unconditional, steps):
    """For ``Examination.sit``; unconditional() tells how often the negative prompt was evaluated in the run just made."""
    return lambda: (1 - unconditional() / steps) / 2


def examine(name, count, batch, steps):
    """Rows of one model: each candidate at the usual scale, and Smart Guidance there and at a high one, all beside full guidance."""
    exam = Examination(name, count, batch, steps)
    plain, rows = exam.bundled.model, []
    for scale, rules in ((SCALE, candidates()), (HIGH, {})):
        full = exam.sit(plain, scale)
        rows.append(compared(labels(name, scale, "full guidance"), full, full))
        for rule, settings in rules.items():
            model, unconditional = skipping(plain, *settings)
            rows.append(compared(labels(name, scale, rule), exam.sit(model, scale, saved_of(unconditional, steps)), full))
        smart, report = hosted.run("SmartGuidance", model=plain, scale=scale, saving="balanced")
        found = exam.sit(smart, 1.0, saved_of(unconditional_of(report), steps))
        rows.append(compared(labels(name, scale, "smart, balanced"), found, full))
    return rows


def labels(name, scale, rule):
    return {"model": name, "scale": scale, "rule": rule}


def measure(models=MODELS, count=160, batch=20, steps=STEPS):
    return result_of([line for name in models for line in examine(name, count, batch, steps)], count, steps)


def result_of(rows, count, steps):
    ours = [f"{row['model']}: {row['saved']:.0%} saved, {row['lost']:.1f} points lost" for row in rows if row["rule"] == "adaptive"]
    return Result(
        "Are captions still drawn right when evaluations of the negative prompt are skipped? Goal: Adaptive Guidance saves at least "
        f"30 % of all evaluations and loses at most one point. {'; '.join(ours)}.",
        f"{count} fresh captions that name everything, the same captions and seeds for every rule; {steps} steps of core's Euler, guidance "
        f"{SCALE:g} and {HIGH:g}; right: the judge reads every attribute of every object as the caption says; lost: points of that "
        "against full guidance at the same scale, low and high a standard error of it to each side; FID and KID: on the judge's "
        "features, to twice as many fresh drawings; of so few pictures they only compare rows of one model.",
        rows,
        Ratios(("model", "scale", "rule"), "lost", "low", "high", goal=1.0),
    )
