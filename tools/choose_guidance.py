"""Chooses what Smart Guidance does: ``python3 -m tools.host --run -m tools.choose_guidance``. Writes smart.json.

Skipping: for each kind of model, number of steps and word for the saving, of the candidates that save at least so much the one with
the least mean log error against full guidance, over scales 3, 5 and 8. Shaping: the rule whose pictures, of captions at a high scale,
are nearest to the data (KID) among those that get the captions right as often as the best, within a point; used from the lowest
scale on at which it is still better than plain CFG.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from comfyui_distillery.samplers.core import complete
from comfyui_distillery.samplers.guidance import RULES, smart

from bench import hosted
from bench.examination import Examination
from bench.guidance import SCALES, skipping
from bench.timing import relative_error

FILE = Path(smart.__file__).with_name("smart.json")
KINDS = {"flow": "shapes-dit", "ve": "shapes-unet"}
STEPS = (8, 12, 20, 30)
CANDIDATES = [
    *(("linear", {"every": n, "warm_up": w}) for n in (2, 3, 4, 5, 6) for w in (1, 3)),
    *(("adaptive", {"min_guided": n, "recheck": r}) for n in (2, 3, 4, 6) for r in (2, 3, 4, 6)),
    *(("low_high", {"every": n}) for n in (2, 3, 4)),
    *(("every_nth", {"every": n}) for n in (2, 3, 4)),
]
SHAPING = [(key, {}) for key in RULES]
HIGH, LOWER = 9.0, (7.0, 5.0)  # scales at which shaping rules are compared


def skipping_rows(kind, pictures, steps=STEPS):
    rows = []
    for count in steps:
        found = {}
        for scale in SCALES:
            task = replace(hosted.bundled(KINDS[kind], pictures), cfg=scale)
            sampler, sigmas = hosted.core("euler"), task.sigmas(count)
            full = task.sample(sampler, sigmas)
            for number, candidate in enumerate(CANDIDATES):
                model, evaluations = skipping(task.model, *candidate)
                error = relative_error(task.sample(sampler, sigmas, model), full)
                found.setdefault(number, []).append((0.5 - evaluations() / count / 2, error))
        rows += [least(found, saving, count) for saving in smart.SAVINGS if saving != "nothing"]
        print(kind, count, rows[-len(smart.SAVINGS) + 1 :], flush=True)
    return rows


def least(found, saving, steps):
    """The row of smart.json for a word; found is {candidate number: [(saved, error) at each scale]}."""
    means = {
        number: (sum(saved for saved, _ in points) / len(points), sum(math.log(error) for _, error in points) / len(points))
        for number, points in found.items()
    }
    enough = {n: mean for n, mean in means.items() if mean[0] >= smart.SAVINGS[saving]}
    if not enough:  # few steps: the largest saving there is
        enough = {n: mean for n, mean in means.items() if mean[0] == max(saved for saved, _ in means.values())}
    number = min(enough, key=lambda n: enough[n][1])
    rule, knobs = CANDIDATES[number]
    return {
        "saving": saving, "steps": steps, "rule": rule, "knobs": knobs,
        "saved": round(means[number][0], 3), "error": round(math.exp(means[number][1]), 4),
    }  # fmt: skip


def shaping_rows(kind, captions):
    exam = Examination(KINDS[kind], captions)

    def sit(candidate, scale):
        model = exam.bundled.model
        if candidate is not None:
            rule, knobs = candidate
            node = "ProjectedGuidance" if RULES[rule].family == "projected" else "GuidanceStrength"
            model = hosted.run(node, model=model, method={"method": rule, **knobs})[0]
        found, _ = exam.sit(model, scale)
        print(kind, scale, candidate, found, flush=True)
        return found

    found = [(candidate, sit(candidate, HIGH)) for candidate in [None, *SHAPING]]
    most = max(result["right"] for _, result in found)
    winner, at_high = min(((c, r) for c, r in found if r["right"] >= most - 0.01), key=lambda pair: pair[1]["KID"])
    if winner is None:
        return []
    start = HIGH
    for scale in LOWER:
        plain, shaped = sit(None, scale), sit(winner, scale)
        if shaped["KID"] >= plain["KID"] or shaped["right"] < plain["right"] - 0.01:
            break
        start = scale
    knobs = complete(RULES[winner[0]].knobs, winner[1])
    elements = exam.bundled.channels * 16 * 16
    figures = {"right": at_high["right"], "KID": round(at_high["KID"], 4)}
    return [{"from scale": start, "rule": winner[0], "knobs": knobs, "elements": elements, **figures}]


def keep(kind, part, rows):
    chosen = json.loads(FILE.read_text())
    chosen[kind][part] = rows
    FILE.write_text(json.dumps(chosen, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4, help="for the errors of skipping rules")
    parser.add_argument("--captions", type=int, default=200, help="for the quality of shaping rules")
    parser.add_argument("--kind", choices=KINDS, help="only this kind; other choices stay")
    parser.add_argument("--parts", nargs="+", choices=("skipping", "shaping"), default=("skipping", "shaping"))
    options = parser.parse_args()
    hosted.node_classes()
    for kind in [options.kind] if options.kind else KINDS:
        if "shaping" in options.parts:
            keep(kind, "shaping", shaping_rows(kind, options.captions))
        if "skipping" in options.parts:
            keep(kind, "skipping", skipping_rows(kind, options.pictures))
    print(FILE.read_text())


if __name__ == "__main__":
    main()
