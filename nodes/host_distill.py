"""A run of training from beginning to end: the teacher's data, the roles, the optimiser's steps, and what comes out."""

import copy
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import comfy.samplers
import torch
from safetensors.torch import load_file

from ..distill import optimisers
from ..distill.batch import Cycle, Data
from ..distill.checkpoints import check_room, save_json
from ..distill.draws import generator
from ..distill.formats import metadata, write
from ..distill.formats.profile import BASE, FIGURES, RECIPE
from ..distill.lora import LoraSet
from ..distill.objectives import OBJECTIVES
from ..distill.pairs import Pairs, fill
from ..distill.roles import EMA, PREVIOUS, STUDENT
from ..distill.train import Events, Result, Training
from . import host_distill_jobs as jobs
from . import host_training, host_turbo
from .host_frozen import PARTS, parts_of, targets_of
from .host_lora import core_state
from .host_prompt_bank import digest

AT_ONCE = 2  # latents that the teacher makes at once, to one of training: it keeps nothing for a backward pass
LAST = 50  # steps whose mean loss is reported
DATA_SHARE = 0.4  # of a run's minutes, for the teacher's latents; if they are there already, all is for training


class Watch(Events):
    """Events of a whole run: of the teacher's data too."""

    def made(self, number, count):
        """So many of the teacher's latents are there."""

    def training(self, sample, history):
        """Training begins, after the steps in ``history``. ``sample()``: a latent (1, C, ..., H, W) of the student as it is now."""


@dataclass(frozen=True)
class Finished:
    """turbo: the TurboLora. result: of Training. folder: of the run. file: the LoRA in it. trained: steps that were made just now."""

    turbo: host_turbo.TurboLora
    result: Result
    folder: Path
    file: Path | None
    trained: int


def run(job, folder, watch):
    """Train, or go on, or hand out what is done already. Finished.

    ValueError where the inputs cannot be trained on or are not those of the run in this folder; OSError where the disk is full.
    Whatever is raised later, an interruption included, the folder holds the state after the last whole step.
    """
    with torch.inference_mode(False):  # nodes run in it
        loras = check(job)
        job = jobs.settle(job, folder)
        counters = jobs.counters_of(folder)
        plan = planned(job, folder)
        if plan and counters and is_over(plan.recipe, *counters):
            training = trainer(plan, loras, folder, None, None)
            return finished(plan, Result(training.used, "done", training.counters, None), folder, 0)
        job.recipe.save(folder / "recipe.json")
        with host_training.training(job.model, loras, job.checkpointing, (job.at_once, *job.shape)) as roles:
            started = time.monotonic()
            latents = clean_latents(job, plan, roles, folder, watch, started)
            plan = plan or made_plan(job, folder, latents, time.monotonic() - started)
            training = trainer(plan, loras, folder, roles, latents, watch)
            before = training.counters.step
            watch.training(partial(sampled, plan, roles), training.counters.history)
            try:
                result = training.run()
            except BaseException:
                with suppress(ValueError):  # of a LoRA too large for its file's numbers: the state has it
                    write_file(made(plan, folder, training.counters), folder)
                raise
        return finished(plan, result, folder, result.counters.step - before)


def check(job):
    """The roles' LoRAs. ValueError, naming the input, for what cannot be trained on: nothing is written yet."""
    host_training.check(job.model)
    jobs.check(job)
    optimisers.check(job.recipe.optimiser["name"])
    return loras_of(job)


def loras_of(job):
    """{role: LoraSet} of the recipe's roles that are trained. ValueError where no layer of the model is meant."""
    recipe, network = job.recipe, job.model.model.diffusion_model
    targets = targets_of(network, recipe.lora["targets"])
    if job.start is None:
        drawn, dtype = generator(recipe.run["seed"], "lora"), getattr(torch, recipe.lora["dtype"])
        student = LoraSet.create(targets, recipe.lora["rank"], recipe.lora["alpha"] or None, drawn, dtype)
    else:
        student = LoraSet.from_state(job.start.state()).to(getattr(torch, recipe.lora["dtype"]))
    roles = {STUDENT: student}
    if recipe.optimiser["ema"]:
        roles[EMA] = copy.deepcopy(student).float()  # in bfloat16 the small steps of an average round to none
    if recipe.objective == "progressive":
        roles[PREVIOUS] = copy.deepcopy(student)
    return roles


def trainer(job, loras, folder, roles, latents, watch=None):
    """The Training of a job. Without roles, only for what it has learnt."""
    recipe, objective = job.recipe, OBJECTIVES[job.recipe.objective]
    data = None if latents is None else data_of(job, latents)
    return Training(
        partial(objective, roles, **recipe.knobs), data, loras[STUDENT], recipe, average=loras.get(EMA), previous=loras.get(PREVIOUS),
        folder=folder, stage=partial(objective.stage, recipe.knobs), events=watch, parts=shared_by(job, loras[STUDENT]),
        times=lambda batch: batch.shown[-1],
    )  # fmt: skip


def shared_by(job, lora):
    """{kind of layer: the parameters of a LoraSet there}, for the shares of the gradient."""
    kinds, found = parts_of(job.model.model.diffusion_model), {part: [] for part in PARTS}
    for path, adapter in lora.items():
        found[kinds[path]] += adapter.parameters()
    return {part: params for part, params in found.items() if params}


def data_of(job, latents):
    recipe = job.recipe
    return Data(
        latents, Cycle(job.bank.positive, len(job.bank.positive)), job.bank.negative, job.levels, seed=recipe.run["seed"],
        size=recipe.run["batch"], paired=job.needs == "pairs", law=recipe.law, law_knobs=recipe.law_knobs,
        immiscible=recipe.data["immiscible"], perturbation=recipe.data["perturbation"], device=job.model.load_device,
    )  # fmt: skip


def finished(job, result, folder, trained):
    turbo = made(job, folder, result.counters, result.student)
    return Finished(turbo, result, folder, write_file(turbo, folder), trained)


def made(job, folder, counters, lora=None):
    """The TurboLora of a LoraSet, or of the one that Training saved last; None where it has saved none."""
    saved = folder / "lora.safetensors"
    if lora is None and not saved.exists():
        return None
    losses = [row["loss"] for row in counters.history if row["loss"] is not None][-LAST:]
    figures = {"steps": counters.step, "seconds": round(counters.seconds, 1), "skipped": counters.skipped}
    if losses:
        figures["loss"] = float(f"{sum(losses) / len(losses):.6g}")
    own = LoraSet.from_state(load_file(saved) if lora is None else lora.state())
    return host_turbo.made(own, job.recipe.sampled_by(job.levels), job.model, job.recipe.to_json(), folder.name, figures)


def write_file(turbo, folder):
    """The path of a LoRA file in the run's folder, in core's dialect, as ComfyUI loads it. None where that fails: Training has said
    so, and the run's own files are as they were.
    """
    if turbo is None:
        return None
    base, recipe, figures = map(turbo.recorded, (BASE, RECIPE, FIGURES))
    header = metadata(
        turbo.lora, "core", turbo.profile, base, recipe, title=folder.name, pack=host_turbo.version(), figures=figures
    )
    path = folder / f"{folder.name}.safetensors"
    try:
        write(path, core_state(turbo.lora), header)
    except OSError:
        return None
    return path


# How long


def planned(job, folder):
    """The job with the number of latents and the minutes that were settled when it began; None before that."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    plan, run = jobs.read_json(path), job.recipe.run
    minutes = plan["minutes"] if run["minutes"] == plan["asked"] else run["minutes"]
    return _with(job, plan["count"], minutes)


def made_plan(job, folder, latents, seconds):
    """What is left of the minutes once the data is there. Settled once, so that the run can be gone on with bit for bit."""
    asked = job.recipe.run["minutes"]
    minutes = max(asked - seconds / 60, asked * (1 - DATA_SHARE)) if asked else 0.0
    save_json(folder / "plan.json", {"asked": asked, "count": len(latents), "minutes": minutes})
    return _with(job, len(latents), minutes)


def _with(job, count, minutes):
    recipe = job.recipe
    return replace(job, recipe=replace(recipe, data={**recipe.data, "count": count}, run={**recipe.run, "minutes": minutes}))


def is_over(recipe, asked, counters):
    """Whether a run with these counters has nothing left to do."""
    same = asked == {name: recipe.run[name] for name in ("steps", "minutes")}
    return counters["step"] >= (counters["steps"] if same else recipe.run["steps"])


# What it learns from


class First:
    """The first so many of some latents, or pairs."""

    def __init__(self, latents, count):
        self.latents, self.count = latents, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.latents[i]

    def noise(self, i):
        return self.latents.noise(i)


def clean_latents(job, plan, roles, folder, watch, started):
    """The user's own where there are any and no pairs are needed, or else the teacher's, kept on disk."""
    if job.bank.latents is not None and job.needs != "pairs":
        return job.model.model.process_latent_in(job.bank.latents.float())
    recipe, levels = job.recipe, job.levels
    count, minutes = (plan or job).recipe.data["count"], recipe.run["minutes"]
    known = {name: value for name, value in job.facts().items() if name != "start"}
    made_by = {name: recipe.data[name] for name in ("teacher_steps", "teacher_scale")}
    place = jobs.teacher_folder(folder) / digest([known, made_by, recipe.run["seed"]])
    pairs = Pairs(place, job.shape, recipe.run["seed"], {**known, **made_by})
    size = 2 * torch.Size(job.shape).numel()  # half precision
    check_room(place, (max(count - len(pairs), 0)) * size + 2**20, f"{count} latents of the teacher")
    cond, at_once = Cycle(job.bank.positive, len(job.bank.positive)), AT_ONCE * job.at_once
    while len(pairs) < count:
        in_time = not minutes or plan or time.monotonic() - started < 60 * minutes * DATA_SHARE
        if not in_time and len(pairs) >= recipe.run["batch"]:
            break
        fill(
            pairs, min(len(pairs) + at_once, count), roles, cond, job.bank.negative, levels, steps=recipe.data["teacher_steps"],
            scale=recipe.data["teacher_scale"], batch=at_once, device=job.model.load_device, warned=watch.warned,
        )  # fmt: skip
        watch.made(len(pairs), count)
    return First(pairs, min(len(pairs), count))


# What it looks like


def sampled(job, roles):
    """A latent (1, C, ..., H, W), on the model's scale, of the first prompt by the student as it is now, by ComfyUI's own sampling."""
    profile = job.recipe.sampled_by(job.levels)
    guider = comfy.samplers.CFGGuider(job.model)
    entries = job.bank.positive.items[0].entry, job.bank.negative.items[0].entry
    guider.set_conds(*([[entry.get("cross_attn"), entry]] for entry in entries))
    guider.set_cfg(profile.cfg)
    noise = torch.randn((1, *job.shape), generator=generator(job.recipe.run["seed"], "preview"))
    role = EMA if job.recipe.optimiser["ema"] else STUDENT
    with torch.no_grad(), roles.playing(role):
        sampler, sigmas = host_turbo.sampler_named(profile.sampler, profile.knobs), torch.tensor(profile.sigmas)
        latent = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
    return job.model.model.process_latent_in(latent)
