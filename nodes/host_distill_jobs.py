"""What a run of training is made of, and its folder: everything that going on with it needs, here or on another machine.

    job.json             what the run depends on, how to load its model, whether it checkpoints
    recipe.json          its Recipe
    prompts.safetensors  its encoded prompts
    start.safetensors    the LoRA that it starts from, where there is one
    state-*              what Training writes; lora.safetensors too
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import comfy.model_patcher
import comfy.sample
import folder_paths
import torch
from safetensors.torch import load_file

from ..distill.checkpoints import Checkpoints, check_same, save_json, save_tensors
from ..distill.formats import difference
from ..distill.formats.files import FORBIDDEN
from ..distill.levels import Levels
from ..distill.lora import LoraSet
from ..distill.objectives import OBJECTIVES
from ..distill.recipe import Recipe
from . import host
from .host_distill_models import reference_of
from .host_lora_formats import fingerprint_of
from .host_prompt_bank import PromptBank, alike, digest, load_bank, packed, save_bank

VERSION = 1
RUNS = os.path.join("distillery", "runs")  # in ComfyUI's output folder
GUIDED_BY = {  # in a MODEL's options: what the teacher would be guided by, and training would leave out
    "sampler_cfg_function": "a function in place of CFG", "sampler_post_cfg_function": "a function after CFG",
    "sampler_pre_cfg_function": "a function before CFG", "sampler_calc_cond_batch_function": "a function around its conditions",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Job:
    """model: the MODEL to teach. shape: (C, ..., H, W) of one latent. start: the LoraSet to go on from, or None."""

    model: comfy.model_patcher.ModelPatcher
    bank: PromptBank
    recipe: Recipe
    shape: tuple[int, ...]
    checkpointing: bool = True
    start: LoraSet | None = None

    @property
    def levels(self):
        sampling = self.model.get_model_object("model_sampling")
        path, table = host.path_of(sampling), host.timestep_table(sampling)
        if table is not None:
            return Levels(path, table)
        return Levels.between(path, float(sampling.sigma_min), float(sampling.sigma_max))

    @property
    def at_once(self):
        """Items in one pass of the model."""
        return self.recipe.run["micro_batch"] or self.recipe.run["batch"]

    @property
    def needs(self):
        return OBJECTIVES[self.recipe.objective].needs

    def facts(self):
        """What the run depends on beside its recipe, for JSON."""
        tensors, layout = packed(self.bank)
        return {
            "base": fingerprint_of(self.model),
            "patches": patches_digest(self.model),
            "noise levels": digest(self.levels.path.prediction, {"table": self.levels.table}),
            "prompts": digest(layout, tensors),
            "latent": list(self.shape),
            "start": None if self.start is None else digest("", self.start.state()),
        }

    def name(self):
        """One for each run: the same for the same inputs, but for how long it goes on."""
        facts = {**self.facts(), "prompts": self.bank.key()}
        return f"{self.recipe.objective}-{digest([facts, self.recipe.identity()])}"


def check(job):
    """ValueError, naming the input, for what no run can be made of."""
    if job.needs == "captioned" and job.bank.latents is None:
        raise ValueError(
            f"recipe learns by {job.recipe.objective}, which needs captioned pictures, and prompts holds none: choose pictures as "
            "the source of Distill Prompts."
        )
    options = job.model.model_options
    for name, meaning in GUIDED_BY.items():
        if options.get(name):
            raise ValueError(f"model carries {meaning}, which training would leave out: connect the MODEL from before that node.")


def shape_of(model, bank, latent):
    """(C, ..., H, W) of the latents to train on: of the bank's pictures, or as the sampler would make this LATENT."""
    if bank.latents is not None:
        return tuple(bank.latents.shape[1:])
    if latent is None:
        raise ValueError("latent is not connected: connect an empty latent of the size to train at, as the sampler would get it.")
    if latent["samples"].is_nested:
        raise ValueError("latent holds several latents (video with audio): training takes one.")
    ratios = (latent.get(f"downscale_ratio_{axis}") for axis in ("spacial", "temporal"))
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise ValueError(f"latent has {samples.shape[1]} channels and this model works on {channels}: use an empty latent for it.")
    return tuple(samples.shape[1:])


def patches_digest(model):
    """What is patched into a MODEL (LoRAs), as a short text; "" for none."""
    if not model.patches:
        return ""
    tensors = {}
    layout = {key: [_described(part, tensors) for part in patches] for key, patches in sorted(model.patches.items())}
    return digest(layout, tensors)


def _described(value, tensors):
    if torch.is_tensor(value):
        tensors[f"{len(tensors)}"] = value
        return len(tensors)
    if isinstance(value, (list, tuple)):
        return [_described(part, tensors) for part in value]
    if hasattr(value, "weights"):  # core's adapters
        return [type(value).__name__, _described(value.weights, tensors)]
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


# Folders


def run_folder(name):
    """The folder of a run in ComfyUI's output folder. ValueError for a name that leads elsewhere."""
    base = Path(folder_paths.get_output_directory()) / RUNS
    text = name.strip().replace("\\", "/")
    path = PurePosixPath(text)
    outside = path.is_absolute() or PureWindowsPath(name.strip()).anchor or ".." in path.parts or not path.name
    bad = FORBIDDEN.search(text) or any(part.endswith((" ", ".")) for part in path.parts)
    if outside or bad or not folder_paths.is_within_directory(str(base), str(base / path)):
        raise ValueError(f"name is {name!r}, which is no folder inside {base}: give a plain name, such as my-run, or leave it empty.")
    return base / path


def runs():
    """Names of the runs that can be continued."""
    base = Path(folder_paths.get_output_directory()) / RUNS
    return sorted(path.parent.relative_to(base).as_posix() for path in base.rglob("job.json"))


def teacher_folder(folder):
    """Where what the teacher makes is kept: beside the runs of a ComfyUI, which share it, or else in the run's own folder."""
    shared = folder.parent.name == "runs" and folder.parent.parent.name == "distillery"
    return folder.parent.parent / "teacher" if shared else folder / "teacher"


def settle(job, folder):
    """Write the job into its folder, or compare it with the one there. The Job to run: with prompts as they were encoded then.

    ValueError that names what differs; OSError where the disk is full.
    """
    check(job)
    if not (folder / "job.json").exists():
        write(job, folder)
        return job
    info, facts = read_info(folder), job.facts()
    changed = difference(info["facts"]["base"], facts["base"])
    if changed:
        raise ValueError(f"{folder} holds a run of another model: {changed}. Connect that model, or give another name.")
    bank = load_bank(folder / "prompts.safetensors")
    if alike(bank, job.bank):
        facts["prompts"] = info["facts"]["prompts"]
    check_same({**info["facts"], "base": None}, {**facts, "base": None}, folder, "a run")
    check_same(Recipe.load(folder / "recipe.json").identity(), job.recipe.identity(), folder, "a run")
    return replace(job, bank=bank, checkpointing=info["checkpointing"])


def write(job, folder):
    """The files of a job that has not begun; job.json is the last, and counts."""
    folder.mkdir(parents=True, exist_ok=True)
    save_bank(job.bank, folder / "prompts.safetensors")
    if job.start is not None:
        save_tensors(folder / "start.safetensors", job.start.state())
    job.recipe.save(folder / "recipe.json")
    info = {"version": VERSION, "model": reference_of(job.model), "facts": job.facts(), "checkpointing": job.checkpointing}
    save_json(folder / "job.json", info)


def read_info(folder):
    """job.json. ValueError where there is none of this version."""
    try:
        info = read_json(folder / "job.json")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no run that can be read ({error}): choose another, or begin it again with Distill.") from error
    if info.get("version") != VERSION:
        raise ValueError(f"{folder} holds a run of format {info.get('version')} and this pack reads {VERSION}: begin it again.")
    return info


def read(folder, model):
    """The Job in a folder, for this MODEL. ValueError where the MODEL is another one."""
    info = read_info(folder)
    start = folder / "start.safetensors"
    job = Job(
        model, load_bank(folder / "prompts.safetensors"), Recipe.load(folder / "recipe.json"), tuple(info["facts"]["latent"]),
        info["checkpointing"], LoraSet.from_state(load_file(start)) if start.exists() else None,
    )  # fmt: skip
    return settle(job, folder)


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def counters_of(folder):
    """(what was asked of the newest state: steps and minutes, its counters), or None before the first."""
    steps = Checkpoints(folder).steps()
    if not steps:
        return None
    info = read_json(Checkpoints(folder).file(steps[-1], "json"))
    return info["asked"], info["counters"]
