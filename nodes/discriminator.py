"""Nodes that fit a discriminator to a model's mistakes, and sample with it."""

import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from safetensors import SafetensorError, safe_open

from ..distill.checkpoints import save_tensors
from ..measure.report import Report as Runs
from ..samplers.guidance.discriminator import CHANCE, Discriminator, check_latents, fit
from ..samplers.path import Path
from . import host
from .display import show
from .host_discriminator import facts_of, latents_of, noise_levels, with_discriminator
from .reports import Report

FOLDER = "distillery_discriminators"  # in ComfyUI's table of model folders
PLACE = os.path.join("distillery", "discriminators")
METHOD, VERSION = "discriminator guidance", 1
IN_COMMON = ("channels", "prediction", "latent_format")
for root in (folder_paths.models_dir, folder_paths.get_output_directory()):  # as core does with what its nodes save
    folder_paths.add_model_folder_path(FOLDER, os.path.join(root, PLACE))


@dataclass(frozen=True)
class Handle:
    """A DISTILLERY_DISCRIMINATOR: the network, on the CPU, and what its file says about it."""

    network: Discriminator
    facts: dict


Socket = io.Custom("DISTILLERY_DISCRIMINATOR")


class FitDiscriminator(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_FitDiscriminator",
            display_name="Fit Discriminator",
            category="distillery/guidance",
            description="Learns to tell a model's latents from real ones, for Discriminator Guidance, and saves what it learnt.",
            search_aliases=["discriminator guidance", "dg", "train discriminator", "calibrate"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to correct: its latents, its noise levels."),
                io.Latent.Input(
                    "real",
                    tooltip="What latents should be like: pictures encoded by the model's VAE, or samples of a slower setting.",
                ),
                io.Latent.Input(
                    "generated",
                    tooltip="What the model makes of the same prompts, sampled as it will be. Same size as real, any number.",
                ),
                io.Int.Input("steps", default=500, min=1, max=100000, tooltip="Steps of training. More need more latents."),
                io.Int.Input(
                    "batch", default=32, min=1, max=1024, tooltip="Latents of each kind in a step, drawn with replacement."
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                    tooltip="The same seed and latents give the same discriminator.",
                ),
                io.String.Input(
                    "name", default="discriminator",
                    tooltip="The file: distillery/discriminators/NAME_00001_.safetensors in ComfyUI's output folder, under the "
                    "next free number; it may begin with a folder, a/b. Neutral: empty, nothing is saved.",
                ),
            ],
            outputs=[
                Socket.Output("discriminator", display_name="discriminator", tooltip="For Discriminator Guidance."),
                io.String.Output("text", display_name="text", tooltip="How well it tells them apart, and where it is saved."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, real, generated, steps, batch, seed, name) -> io.NodeOutput:
        facts = facts_of(model)
        where = destination(name) if name.strip() else None
        latents = [latents_of(model, key, each) for key, each in (("real", real), ("generated", generated))]
        check_latents(*latents)
        bar, interrupts = comfy.utils.ProgressBar(steps), []

        def progress(step, loss):
            try:
                comfy.model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(step, steps)  # the server's bar throws it too
            except comfy.model_management.InterruptProcessingException as interrupt:
                interrupts.append(interrupt)
            return not interrupts

        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(memory_of(latents[0], batch), device)
        path = host.path_of(model.get_model_object("model_sampling"))
        levels = noise_levels(model)
        fitted = fit(*latents, path, levels, steps=steps, batch=batch, seed=seed, progress=progress, device=device)
        facts |= {
            "method": METHOD, "version": VERSION, "shape": list(latents[0].shape[2:]), "real": len(latents[0]),
            "generated": len(latents[1]), "steps": fitted.steps, "batch": batch, "seed": seed, "held_out": fitted.held_out,
            "loss": fitted.loss, "accuracy": fitted.accuracy, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }  # fmt: skip
        handle = Handle(fitted.discriminator.cpu(), facts)
        text = in_words(facts, save(handle, *where) if where else None)
        if interrupts:  # what was fitted so far is saved
            raise interrupts[0]
        return io.NodeOutput(handle, text, ui=show(cls, text))


class LoadDiscriminator(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        files = [file for file in folder_paths.get_filename_list(FOLDER) if file.endswith(".safetensors")]
        return io.Schema(
            node_id="Distillery_LoadDiscriminator",
            display_name="Load Discriminator",
            category="distillery/guidance",
            description="A discriminator that Fit Discriminator saved.",
            search_aliases=["discriminator guidance", "dg"],
            inputs=[
                io.Combo.Input(
                    "name", options=files,
                    tooltip="A file in distillery/discriminators of ComfyUI's output folder or models folder.",
                ),
            ],
            outputs=[
                Socket.Output("discriminator", display_name="discriminator", tooltip="For Discriminator Guidance."),
                io.String.Output("text", display_name="text", tooltip="How well it tells real from generated, and its origin."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, name):
        """Changes when the file does."""
        return os.stat(folder_paths.get_full_path_or_raise(FOLDER, name)).st_mtime_ns

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise(FOLDER, name)
        handle = load(path)
        return io.NodeOutput(handle, in_words(handle.facts, path))


class DiscriminatorGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        percent = {"min": 0.0, "max": 1.0, "step": 0.001, "advanced": True}
        return io.Schema(
            node_id="Distillery_DiscriminatorGuidance",
            display_name="Discriminator Guidance",
            category="distillery/guidance",
            description="Corrects each prediction by what a discriminator has learnt about the model's mistakes.",
            search_aliases=["dg", "discriminator", "score correction"],
            not_idempotent=True,  # else ComfyUI makes one report of two such nodes on the same model
            inputs=[
                io.Model.Input("model", tooltip="The model that the discriminator was fitted for. Any sampler and guider."),
                Socket.Input("discriminator", tooltip="From Fit Discriminator or Load Discriminator."),
                io.Float.Input(
                    "weight", default=1.0, min=0.0, max=20.0, step=0.05,
                    tooltip="How much of the correction to add. Neutral: 0. 1 is right for a perfect discriminator.",
                ),
                io.Float.Input(
                    "boost", default=1.0, min=1.0, max=10.0, step=0.1, advanced=True,
                    tooltip="Multiplies the weight for those latents of a batch that at this step look more generated than real. "
                    "Neutral: 1. The paper doubles it.",
                ),
                io.Float.Input("start_percent", default=0.0, tooltip="Where in sampling it begins. Neutral: 0.", **percent),
                io.Float.Input("end_percent", default=1.0, tooltip="Where in sampling it ends. Neutral: 1.", **percent),
            ],
            outputs=[
                io.Model.Output(tooltip="The same model, corrected."),
                Report.Output("report", display_name="report", tooltip="What its runs did: for Show Report."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, discriminator, weight, boost, start_percent, end_percent) -> io.NodeOutput:
        if start_percent >= end_percent:
            raise ValueError(f"start_percent is {start_percent} and end_percent {end_percent}: it must end after it begins.")
        check_fits(discriminator.facts, facts_of(model))
        report = Runs()
        guided = with_discriminator(model, discriminator.network, weight, boost, start_percent, end_percent)
        return io.NodeOutput(host.with_report(guided, report), report)


def memory_of(latents, batch):
    """Bytes that a step of training holds at once, about: both kinds, some 30 maps of 48 channels, in float32."""
    return 2 * batch * latents[0, 0].numel() * 48 * 30 * 4 + 2**28


def check_fits(facts, expected):
    """ValueError that says in what a discriminator differs from the model that it is to correct."""
    names = {"channels": "latent channels", "prediction": "prediction type", "latent_format": "latent format"}
    differ = [f"{names[key]} {facts[key]}, this model {expected[key]}" for key in IN_COMMON if facts[key] != expected[key]]
    if differ:
        raise ValueError(
            f"discriminator was fitted for another model ({'; '.join(differ)}): connect that model, or fit a new one with Fit "
            "Discriminator."
        )


def in_words(facts, path=None):
    sizes = f"{facts['real']} real and {facts['generated']} generated latents, {facts['steps']} steps"
    judged = f"Held out, {facts['held_out']} of each: accuracy {facts['accuracy']:.1%} (chance 50%), loss {facts['loss']:.3f} "
    lines = [f"{facts['prediction']}, {facts['channels']} channels; {sizes}.", judged + f"(chance {CHANCE:.3f})."]
    if facts["loss"] >= CHANCE:
        lines.append(
            "It cannot tell latents apart that it was not fitted on, and its correction is no help: give more latents, or fewer "
            "steps. If they are alike in truth, there is nothing to correct."
        )
    lines.append(f"File: {path}" if path else "Not saved.")
    return "\n".join(lines)


# Files


def destination(name):
    """(folder, file name without number and ending) for a name that a user gave. ValueError for one that leads elsewhere."""
    base = os.path.join(folder_paths.get_output_directory(), PLACE)
    inside, stem = os.path.split(os.path.normpath(name.strip().removesuffix(".safetensors")))
    folder = os.path.join(base, inside)
    if stem in ("", ".", "..") or not folder_paths.is_within_directory(base, folder):
        raise ValueError(f"name is {name!r}, which is no file inside {base}: give a plain one, such as my-model.")
    return folder, stem


def save(handle, folder, stem):
    """The path of the new file, which appears whole or not at all."""
    folder, stem, number, _, _ = folder_paths.get_save_image_path(stem, folder)
    path = os.path.join(folder, f"{stem}_{number:05}_.safetensors")
    save_tensors(path, handle.network.state_dict(), {"distillery": json.dumps(handle.facts)})
    return path


def load(path):
    """The Handle in a file. ValueError where that is none, or one that this version does not read."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("distillery", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): fit the discriminator again.") from error
    if facts.get("method") != METHOD:
        raise ValueError(f"{path} holds no discriminator: choose a file that Fit Discriminator saved.")
    if facts.get("version") != VERSION:
        raise ValueError(
            f"{path} is of format {facts.get('version')} and this pack reads {VERSION}: update the pack, or fit it again."
        )
    with torch.inference_mode(False):
        network = Discriminator(facts["channels"], Path(facts["prediction"]))
        network.load_state_dict(tensors)
    return Handle(network.eval().requires_grad_(False), facts)


NODES = [FitDiscriminator, LoadDiscriminator, DiscriminatorGuidance]
