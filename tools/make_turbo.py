"""Makes a turbo LoRA for a bundled model, by the same session as the Distill node, and says how good it is.

``python3 -m tools.host --run -m tools.make_turbo NAME [--goal GOAL] [--minutes M]``: NAME is shapes-dit or shapes-unet, the goal 4_steps
unless given. Learns from captions that tools/shapes.py makes up and what the model draws of them; no pictures are needed. Writes
models/shapes-turbo-dit.safetensors or -unet (another goal is added to the name), with its figures in the header. Ended at any time, it
goes on from .cache/turbo when started again; without --minutes it makes the steps of its recipe.
"""

import argparse
import json
import random
from dataclasses import replace

from tqdm import tqdm

from bench.distill_quality import examined
from bench.hosted import encode, node_classes, run

from . import ROOT, shapes

CACHE = ROOT / ".cache" / "turbo"
LICENCE = "Apache-2.0, as the model it is for and the data that made it."
SHAPE = {"shapes-dit": (16, 16, 16), "shapes-unet": (4, 16, 16)}
GUIDANCE_WEIGHT = {"shapes-dit": "v", "shapes-unet": "min_snr"}


def recipe_of(name, goal):
    """What was found to work for these small models: a rate ten times that of large ones, and a batch that CPUs are quick at."""
    from comfyui_distillery.distill.goals import recipe_for

    recipe = recipe_for(goal, scale=4.0)
    better = {"phased": {"substeps": 4, "at_edge": 0.75}, "guidance": {"weight": GUIDANCE_WEIGHT[name]}}.get(recipe.objective, {})
    return replace(
        recipe,
        knobs={**recipe.knobs, **better},
        data={**recipe.data, "count": 512, "teacher_steps": 20},
        lora={"rank": 32, "targets": "linear" if name == "shapes-dit" else "linear and convolutions"},
        optimiser={"lr": 1e-3, "ema": 0.99, "warmup": 20},
        run={**recipe.run, "steps": 1000, "batch": 8, "save_every": 50},
    )


def prompts(clip, count, seed="turbo"):
    """A bank of so many captions, some of which leave things out, as those did that the models learnt from."""
    from comfyui_distillery.nodes.host_prompt_bank import PromptBank

    rng = random.Random(seed)
    texts = [shapes.caption(shapes.random_scene(rng), rng, full=rng.random() < 0.5) for _ in range(count)]
    return PromptBank.of([encode(clip, text) for text in texts], [encode(clip, "")], (*texts, ""))


def bars():
    """Bars on the terminal for the teacher's latents and for the training."""
    from comfyui_distillery.nodes.host_distill import Watch

    class Bars(Watch):
        bar = None

        def show(self, what, done, total, **more):
            if self.bar is None or self.bar.desc != f"{what}: ":
                self.bar = tqdm(mininterval=5)
                self.bar.set_description(what, refresh=False)
            self.bar.total = total
            self.bar.set_postfix(more, refresh=False)
            self.bar.update(done - self.bar.n)

        def made(self, number, count):
            self.show("teacher", number, count)

        def planned(self, steps):
            self.steps = steps

        def stepped(self, row):
            self.show("training", row["step"], self.steps, loss=row["loss"])

        def warned(self, text):
            tqdm.write(text)

    return Bars()


def distil(name, recipe, folder):
    """(MODEL of the teacher, host_distill.Finished)"""
    from comfyui_distillery.nodes import host_distill, host_distill_jobs

    model, clip, _ = run("LoadDemoModel", name=name)
    job = host_distill_jobs.Job(model, prompts(clip, recipe.data["count"]), recipe, SHAPE[name], checkpointing=False)
    folder.mkdir(parents=True, exist_ok=True)
    return model, host_distill.run(job, folder, bars())


def judged(name, model, turbo, count):
    """(the TurboLora with figures at its own number of steps, rows of all)"""
    from comfyui_distillery.distill.formats.profile import FIGURES
    from comfyui_distillery.nodes import host_turbo

    steps = turbo.profile.steps
    few = {1, 2, 4, 8, steps} if steps <= 8 else {steps}
    rows = examined(name, host_turbo.applied(model, turbo), count, steps=sorted(few))
    teacher, own = rows[0], next(row for row in rows if (row["by"], row["steps"]) == ("student", steps))
    figures = {
        "pictures judged": count, f"captions right in {steps} steps": own["right"], f"FID in {steps} steps": own["FID"],
        f"captions right by the teacher in {teacher['steps']}": teacher["right"], f"FID of the teacher in {teacher['steps']}": teacher["FID"],
    }  # fmt: skip
    recorded = {**turbo.recorded(FIGURES), **{key: round(value, 4) for key, value in figures.items()}}
    return replace(turbo, metadata={**turbo.metadata, FIGURES: json.dumps(recorded)}), rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SHAPE))
    parser.add_argument("--goal", default="4_steps")
    parser.add_argument("--minutes", type=float, default=0.0, help="time for everything but the judge")
    parser.add_argument("--count", type=int, default=500, help="pictures to judge by; 0 for none")
    options = parser.parse_args()
    node_classes()
    from comfyui_distillery.nodes import host_turbo

    recipe = recipe_of(options.name, options.goal)
    recipe = replace(recipe, run={**recipe.run, "minutes": options.minutes})
    kind = options.name.removeprefix("shapes-")
    title = f"shapes-turbo-{kind}" + ("" if options.goal == "4_steps" else "-" + options.goal.replace("_", "-"))
    model, finished = distil(options.name, recipe, CACHE / title)
    turbo, rows = replace(finished.turbo, name=title), []
    if options.count:
        turbo, rows = judged(options.name, model, turbo, options.count)
    path = ROOT / "models" / f"{title}.safetensors"
    host_turbo.write_file(turbo, model, path, licence=LICENCE)
    path.chmod(0o644)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {finished.result.counters.step} steps in {finished.result.counters.seconds:.0f} s")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
