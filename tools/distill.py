"""Trains without ComfyUI's window, as Distill does: ``python -m tools.distill JOB``. Stop it at any moment, and run it again to go on.

JOB is a folder that Export Run or Distill wrote, or a JSON file such as

    {"model": {"loader": "demo", "file": "shapes-dit"}, "latent": [16, 16, 16], "goal": "4_steps", "cfg": 4.0,
     "prompts": ["a red star", "a blue ring"], "negative": "", "run": {"minutes": 3}}

whose run goes into a folder of the same name beside it. loader: demo, "diffusion model" or checkpoint, and the file's path; "shift"
where a flow model is sampled with another than its own. latent: channels and size of one latent. "recipe": {...} as recipe.json has
it may stand in place of goal, quality and cfg; run changes settings of either. Prompts need a text encoder: demo or checkpoint.
"""

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from .install import Problem

KNOWN = {"model", "latent", "goal", "quality", "cfg", "prompts", "negative", "run", "recipe", "checkpointing"}


def job_in(path, given, steps):
    """(Job, folder) of a run's folder or a JSON file. given: a model to load in place of the one it names, or None."""
    from comfyui_distillery.nodes import host_distill_jobs as jobs
    from comfyui_distillery.nodes import host_distill_models as models

    folder = path.parent if path.name == "job.json" else path
    if folder.is_dir():
        model, _ = models.load(reference(given, jobs.read_info(folder)["model"]))
        job = jobs.read(folder, model)
    else:
        job, folder = written_job(path, given), path.with_suffix("")
    if steps:
        job = replace(job, recipe=replace(job.recipe, run={**job.recipe.run, "steps": steps, "minutes": 0.0}))
    return job, folder


def reference(given, recorded):
    """What to load: the model given on the command line, by name or file, with the recorded shift and dtype."""
    from comfyui_distillery.nodes.demo import DEMO_MODELS

    if given is None:
        return recorded
    loader = "demo" if given in DEMO_MODELS else recorded["loader"] or "diffusion model"
    return {**recorded, "loader": loader, "file": given}


def written_job(path, given):
    """The Job of a JSON file. ValueError that names what is wrong with it."""
    from comfyui_distillery.distill.goals import recipe_for
    from comfyui_distillery.distill.recipe import Recipe
    from comfyui_distillery.nodes import host_distill_models as models
    from comfyui_distillery.nodes.distill_prompts import encode, expanded
    from comfyui_distillery.nodes.host_distill_jobs import Job
    from comfyui_distillery.nodes.host_prompt_bank import PromptBank

    wanted = json.loads(path.read_text("utf-8"))
    if not isinstance(wanted, dict):
        raise ValueError("it is no object: see python -m tools.distill --help for one.")  # noqa: TRY004
    unknown = sorted(wanted.keys() - KNOWN)
    missing = sorted({"model", "latent", "prompts"} - wanted.keys())
    if unknown or missing:
        raise ValueError(f"it has {unknown[0]!r}: there is {', '.join(sorted(KNOWN))}." if unknown else f"it has no {missing[0]!r}.")
    if "recipe" in wanted:
        recipe = Recipe.from_json(wanted["recipe"])
    else:
        recipe = recipe_for(wanted.get("goal", "4_steps"), wanted.get("quality", "normal"), wanted.get("cfg", 4.0))
    recipe = replace(recipe, run={**recipe.run, **wanted.get("run", {})})
    model, clip = models.load(reference(given, wanted["model"]))
    if clip is None:
        raise ValueError("its model comes without a text encoder: use a checkpoint, or export the run from ComfyUI.")
    prompts, negative = expanded("\n".join(wanted["prompts"])), wanted.get("negative", "")
    encoded = [encode(clip, text) for text in (*prompts, negative)]
    bank = PromptBank.of(encoded[:-1], encoded[-1:], (*prompts, negative))
    return Job(model, bank, recipe, tuple(wanted["latent"]), wanted.get("checkpointing", True))


def watch(quiet):
    from comfyui_distillery.nodes.host_distill import Watch

    class Bars(Watch):
        """Progress bars on the terminal."""

        text = bar = None

        def show(self, text, number, count):
            if self.text != text:
                self.text, self.bar = text, tqdm(desc=text, total=count, disable=quiet or None, mininterval=1)
            self.bar.total = count
            self.bar.update(number - self.bar.n)

        def made(self, number, count):
            self.show("the teacher's latents: ", number, count)

        def planned(self, steps):
            self.steps = steps

        def stepped(self, row):
            self.show("training: ", row["step"], self.steps)

        def warned(self, text):
            tqdm.write(f"distillery: {text}", file=sys.stderr)

    return Bars()


def train(path, given=None, steps=0, quiet=False):
    """Train the job at this path. What ``host_distill.run`` returns; the LoRA is NAME.safetensors in the run's folder."""
    import torch
    from comfyui_distillery.nodes import host_distill

    with torch.inference_mode():
        job, folder = job_in(path, given, steps)
    return host_distill.run(job, folder, watch(quiet))


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tools.distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", type=Path, help="a run's folder, its job.json, or a JSON file")
    parser.add_argument("--model", metavar="NAME_OR_FILE", help="load this in place of the model that the job names")
    parser.add_argument("--steps", type=int, default=0, help="go on until so many steps are made in all")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    # As Ctrl-C, which waits for an optimiser's step to be whole.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    from bench.hosted import node_classes

    node_classes()
    from comfyui_distillery.nodes.distill import in_words

    try:
        done = train(options.job, options.model, options.steps, options.json)
    except (ValueError, OSError, Problem) as problem:
        if options.json:
            print(json.dumps({"error": str(problem)}))
        sys.exit(f"distillery: {options.job}: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
    counters = done.result.counters
    facts = {"folder": str(done.folder), "file": str(done.file), "steps": counters.step, "trained": done.trained, "ended": done.result.ended}
    print(json.dumps(facts) if options.json else f"{in_words(done, [])}\nLoRA: {done.file}")


if __name__ == "__main__":
    main()
