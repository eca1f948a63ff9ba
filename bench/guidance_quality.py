"""What guidance rules do to pictures: are captions still drawn right, and is the set of pictures as good?"""

import random

from . import Ratios, Result, hosted
from .guidance import MODELS, skipping, unconditional_of

STEPS, SCALE, HIGH = 20, 5.0, 9.0
PUBLISHED = {"min_guided": 1, "instead": "nothing", "recheck": 0}


def candidates():
    """{name: function of a MODEL to a MODEL}, at the usual scale."""
    skips = {
        "adaptive": ("adaptive", {}),
        "adaptive, dropping after 8 steps": ("adaptive", PUBLISHED | {"threshold": 1.01, "max_guided": 8}),
        "rival: asagi4's rule, 0.995": (None, 0.995),
        "linear, every 3": ("linear", {"every": 3}),
        "linear, every 5": ("linear", {"every": 5}),
        "interval, to 0.5": ("interval", {"start": 0.0, "end": 0.5}),
    }
    return {name: (lambda model, rule=rule, knobs=knobs: skipping(model, rule, knobs)) for name, (rule, knobs) in skips.items()}


class Examination:
    """One bundled model drawing the same captions again and again, read by the judge."""

    def __init__(self, name, count, batch=20):
        import torch
        from comfyui_distillery.measure.judge import load_judge

        from tools import shapes
        from tools.check_demo import Bundled

        self.judge, self.bundled, self.batch = load_judge(), Bundled(name), batch
        rng = random.Random("guidance")
        self.scenes = [shapes.random_scene(rng) for _ in range(count)]
        self.captions = [shapes.caption(scene, rng, full=True) for scene in self.scenes]
        fresh = [shapes.draw([shapes.random_scene(rng) for _ in range(batch)]) for _ in range(2 * count // batch)]
        self.fresh = self.judge.features(torch.cat(fresh).movedim(1, -1))

    def sit(self, model, scale, unconditional=lambda: STEPS, steps=STEPS):
        """{"saved", "right", "FID"} of pictures by this model; unconditional() tells the evaluations of a run just made."""
        import torch
        from comfyui_distillery.measure.distribution import fid

        from tools.train_judge import right

        rights, features, evaluations = [], [], []
        with torch.inference_mode():
            for i in range(0, len(self.captions), self.batch):
                pictures = self.bundled.pictures(self.captions[i : i + self.batch], i, steps, scale, model)
                evaluations.append(unconditional())
                rights += [right(scene, read) for scene, read in zip(self.scenes[i:], self.judge.read(pictures))]
                features.append(self.judge.features(pictures))
        saved = (1 - sum(evaluations) / len(evaluations) / steps) / 2
        return {"saved": saved, "right": sum(rights) / len(rights), "FID": fid(self.fresh, torch.cat(features))}


def examine(name, count):
    """Rows of one model: full guidance, each candidate, and at a high scale plain and Smart Guidance."""
    exam = Examination(name, count)
    full = exam.sit(exam.bundled.model, SCALE)
    rows = [row(name, SCALE, "full guidance", full, full)]
    for rule, made in candidates().items():
        model, unconditional = made(exam.bundled.model)
        rows.append(row(name, SCALE, rule, exam.sit(model, SCALE, unconditional), full))
    for scale in (SCALE, HIGH):
        if scale == HIGH:
            full = exam.sit(exam.bundled.model, HIGH)
            rows.append(row(name, HIGH, "full guidance", full, full))
        smart, report = hosted.run("SmartGuidance", model=exam.bundled.model, scale=scale, saving="balanced")
        rows.append(row(name, scale, "smart, balanced", exam.sit(smart, 1.0, unconditional_of(report)), full))
    return rows


def row(name, scale, rule, found, full):
    """lost: points of ``right`` below full guidance."""
    return {"model": name, "scale": scale, "rule": rule, **found, "lost": 100 * (full["right"] - found["right"])}


def measure(models=MODELS, count=300):
    rows = [line for name in models for line in examine(name, count)]
    return Result(
        "Are captions still drawn right when evaluations of the negative prompt are skipped? Goal: Adaptive Guidance saves at least "
        "30 % of all evaluations and loses at most one point.",
        f"{count} fresh captions that name everything, the same captions and seeds for every rule; {STEPS} steps of core's Euler, guidance "
        f"{SCALE:g} and {HIGH:g}; right: the judge reads every attribute of every object as the caption says; lost: points of that, "
        "against full guidance at the same scale; FID: on the judge's features, to twice as many fresh drawings.",
        rows,
        Ratios(("model", "scale", "rule"), "lost", "lost", "lost", goal=1.0),
    )
