"""What guidance rules do to pictures: are captions still drawn right, and is the set of pictures as good?"""

import random
import statistics

from . import Ratios, Result, hosted
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


class Examination:
    """One bundled model drawing the same captions with the same seeds again and again, read by the judge."""

    def __init__(self, name, count, batch=20, steps=STEPS):
        import torch
        from comfyui_distillery.measure.judge import load_judge

        from tools import shapes
        from tools.check_demo import Bundled

        self.judge, self.bundled, self.batch, self.steps = load_judge(), Bundled(name), batch, steps
        rng = random.Random("guidance")
        self.scenes = [shapes.random_scene(rng) for _ in range(count)]
        self.captions = [shapes.caption(scene, rng, full=True) for scene in self.scenes]
        fresh = [shapes.draw([shapes.random_scene(rng) for _ in range(batch)]) for _ in range(2 * count // batch)]
        self.fresh = self.judge.features(torch.cat(fresh).movedim(1, -1))

    def sit(self, model, scale, unconditional=None):
        """({"saved", "right", "FID", "KID"} of this model's pictures, whether each is right); unconditional() tells how often
        the negative prompt was evaluated in a run just made, None that it always was.
        """
        import torch
        from comfyui_distillery.measure.distribution import fid, kid

        from tools.train_judge import right

        rights, features, guided = [], [], []
        with torch.inference_mode():
            for i in range(0, len(self.captions), self.batch):
                pictures = self.bundled.pictures(self.captions[i : i + self.batch], i, self.steps, scale, model)
                guided.append(unconditional() if unconditional else self.steps)
                rights += [right(scene, read) for scene, read in zip(self.scenes[i:], self.judge.read(pictures))]
                features.append(self.judge.features(pictures))
        features, saved = torch.cat(features), (1 - statistics.mean(guided) / self.steps) / 2
        far = {"FID": fid(self.fresh, features), "KID": kid(self.fresh, features)}
        return {"saved": saved, "right": statistics.mean(rights), **far}, rights


def examine(name, count, batch, steps):
    """Rows of one model: each candidate at the usual scale, and Smart Guidance there and at a high one, all beside full guidance."""
    exam = Examination(name, count, batch, steps)
    plain, rows = exam.bundled.model, []
    for scale, rules in ((SCALE, candidates()), (HIGH, {})):
        full = exam.sit(plain, scale)
        rows.append(compared(name, scale, "full guidance", full, full))
        for rule, settings in rules.items():
            model, unconditional = skipping(plain, *settings)
            rows.append(compared(name, scale, rule, exam.sit(model, scale, unconditional), full))
        smart, report = hosted.run("SmartGuidance", model=plain, scale=scale, saving="balanced")
        rows.append(compared(name, scale, "smart, balanced", exam.sit(smart, 1.0, unconditional_of(report)), full))
    return rows


def compared(name, scale, rule, found, full):
    """lost: points of ``right`` below full guidance; low and high: a standard error of that, picture by picture, to each side."""
    (figures, rights), (_, wanted) = found, full
    changes = [100 * (before - after) for before, after in zip(wanted, rights)]
    lost, error = statistics.mean(changes), statistics.stdev(changes) / len(changes) ** 0.5
    return {"model": name, "scale": scale, "rule": rule, **figures, "lost": lost, "low": lost - error, "high": lost + error}


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
