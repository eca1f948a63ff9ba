"""The nodes that train: Distill, Continue, and Export Run for training elsewhere."""

import sys
from dataclasses import replace

import folder_paths
from comfy_api.latest import io

from ..distill.formats.profile import usage
from ..distill.goals import GOALS, QUALITY, recipe_for
from ..distill.objectives import OBJECTIVES
from ..measure.training_curves import draw
from . import host_distill, host_turbo
from . import host_distill_jobs as jobs
from .display import draw_and_show, show
from .distill_prompts import PromptsType
from .distill_recipe import RecipeType
from .host_distill_live import Live

MEMORY = {  # preset: checkpointing, items at once (0 = the batch), highest rank, dtype of the LoRA (None = the recipe's)
    "plenty": (False, 0, None, None),
    "24 GB": (True, 0, None, None),
    "16 GB": (True, 2, 64, None),
    "12 GB": (True, 1, 32, "bfloat16"),
    "8 GB": (True, 1, 8, "bfloat16"),
}


def inputs():
    """Of Distill and Export Run: everything that a run is made of."""
    goals = "\n".join(f"{name}: {goal.title}, {goal.good_for}." for name, goal in GOALS.items())
    return [
        io.Model.Input("model", tooltip="The model to teach, LoRAs on it included. It is not changed."),
        PromptsType.Input("prompts", tooltip="From Distill Prompts: what to learn from. Some dozens, like those you will use."),
        io.Combo.Input("goal", options=list(GOALS), default="4_steps", tooltip=f"What the LoRA is to do.\n{goals}"),
        io.Combo.Input(
            "quality", options=list(QUALITY), default="normal",
            tooltip="How long to train: " + ", ".join(f"{name} {share:g}" for name, share in QUALITY.items()) + " times the goal's steps.",
        ),
        io.Float.Input(
            "cfg", default=4.0, min=1.0, max=30.0, step=0.1,
            tooltip="The CFG that the model is normally sampled with: the student learns it, and is sampled at CFG 1. Neutral: 1.",
        ),
        io.Int.Input(
            "steps", default=0, min=0, max=10000000, tooltip="Training steps. Neutral: 0, as many as goal and quality mean."
        ),
        io.Float.Input(
            "minutes", default=0.0, min=0.0, max=100000.0, step=0.5,
            tooltip="Time for everything, the teacher's latents included: only as many steps are made as fit. Neutral: 0, no limit.",
        ),
        io.Combo.Input(
            "memory", options=list(MEMORY), default="24 GB",
            tooltip="Of the GPU. Less memory: activations are computed again, fewer items at once, lower ranks, LoRA in bfloat16. "
            "plenty computes nothing twice, which is fastest; use it for small models.",
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=2**53, control_after_generate=False, tooltip="The same inputs and seed train the same LoRA."
        ),
        io.String.Input(
            "name", default="",
            tooltip="The run's folder, in distillery/runs of ComfyUI's output folder. Neutral: empty, a name of its own for each "
            "combination of inputs, so that the same inputs always go on with the same run.",
        ),
        io.Latent.Input(
            "latent", optional=True,
            tooltip="An empty latent of the size to train at, one that the model is good at. Not needed with captioned pictures.",
        ),
        RecipeType.Input("recipe", optional=True, tooltip="From Recipe: in place of goal, quality and cfg. Neutral: none."),
        host_turbo.TurboLoraType.Input(
            "turbo_lora", optional=True,
            tooltip="A LoRA to begin from, with its layers and rank, such as a guidance-free one before fewer steps. Neutral: none.",
        ),
    ]  # fmt: skip


def job_of(model, prompts, goal, quality, cfg, steps, minutes, memory, seed, latent, recipe, turbo_lora):
    """The Job that the inputs describe. ValueError for inputs that do not go together."""
    recipe = recipe or recipe_for(goal, quality, cfg)
    checkpointing, at_once, rank, dtype = MEMORY[memory]
    run = {**recipe.run, "seed": seed, "steps": steps or recipe.run["steps"], "minutes": minutes or recipe.run["minutes"]}
    if at_once:
        run["micro_batch"] = min(at_once, run["batch"])
    lora = {**recipe.lora, "rank": min(recipe.lora["rank"], rank or recipe.lora["rank"]), "dtype": dtype or recipe.lora["dtype"]}
    shape = jobs.shape_of(model, prompts, latent)
    start = None if turbo_lora is None else turbo_lora.lora
    return jobs.Job(model, prompts, replace(recipe, run=run, lora=lora), shape, checkpointing, start)


OUTPUTS = [
    io.Model.Output(tooltip="The model with what was learnt, at full strength."),
    host_turbo.TurboLoraType.Output(
        "turbo_lora", display_name="turbo_lora", tooltip="The LoRA and how to sample with it: for Save Turbo LoRA, Compare Steps, or Distill."
    ),
    io.Sampler.Output(tooltip="What to sample the model with: for SamplerCustom."),
    io.Sigmas.Output(tooltip="At which noise levels: for SamplerCustom."),
    io.Float.Output("cfg", display_name="cfg", tooltip="And with which CFG; 1 is none."),
    io.Image.Output("curves", display_name="curves", tooltip="Loss, gradient, learning rate, and what each kind of layer and noise level has of them. Needs matplotlib."),
    io.String.Output("text", display_name="text", tooltip="What was done, how to sample, and where the run is."),
]  # fmt: skip


def trained(cls, job, folder):
    """The outputs of a node that trains."""
    live = Live(job.model)
    done = host_distill.run(job, folder, live)
    sampler, sigmas, cfg = host_turbo.sampling(done.turbo)
    text = in_words(done, live.warnings)
    curves, shown = draw_and_show(cls, text, draw, done.result.counters.history)
    return io.NodeOutput(host_turbo.applied(job.model, done.turbo), done.turbo, sampler, sigmas, cfg, curves, text, ui=shown)


def in_words(done, warnings):
    result, counters = done.result, done.result.counters
    figures, recipe = done.turbo.recorded(host_turbo.FIGURES), done.turbo.recorded(host_turbo.RECIPE)
    loss = f", loss {figures['loss']:.4g}" if "loss" in figures else ""
    lines = [f"{OBJECTIVES[recipe['objective']].title}: {counters.step} steps in {counters.seconds:.0f} s{loss}."]
    if not done.trained:
        lines.append("It was done before: nothing was trained now.")
    elif done.trained < counters.step:
        lines.append(f"Gone on with after step {counters.step - done.trained}.")
    if result.ended == "time":
        lines.append("As many steps as fitted into the minutes.")
    if result.ended == "diverged":
        lines.append("It ended early, as it gave no finite numbers any more: lower the learning rate.")
    if result.unsaved:
        lines.append(f"The last state is not on the disk: {result.unsaved}")
    lines += [f"Note: {warning}" for warning in warnings]
    return "\n".join([*lines, f"To be sampled with: {usage(done.turbo.profile)}", f"Folder: {done.folder}"])


class Distill(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Distill",
            display_name="Distill",
            category="distillery/distillation",
            description="Trains a LoRA that makes a model need fewer steps, or no CFG. It learns from the model itself, by prompts alone.",
            search_aliases=["train lora", "turbo", "lcm", "lightning", "few-step", "guidance distillation", "reflow", "speed lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=inputs(),
            outputs=OUTPUTS,
        )

    @classmethod
    def execute(
        cls, model, prompts, goal, quality, cfg, steps, minutes, memory, seed, name, latent=None, recipe=None, turbo_lora=None
    ) -> io.NodeOutput:
        job = job_of(model, prompts, goal, quality, cfg, steps, minutes, memory, seed, latent, recipe, turbo_lora)
        return trained(cls, job, jobs.run_folder(name if name.strip() else job.name()))


class Continue(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Continue",
            display_name="Continue",
            category="distillery/distillation",
            description="Goes on with a run of Distill: one that was interrupted or exported, or one that is to learn for longer.",
            search_aliases=["resume training", "continue training", "train more", "distill"],
            is_output_node=True,
            not_idempotent=True,  # the folder may have changed since
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model of the run, with the same LoRAs on it."),
                io.Combo.Input("run", options=jobs.runs(), tooltip="A folder in distillery/runs of ComfyUI's output folder."),
                io.Int.Input(
                    "steps", default=0, min=0, max=10000000,
                    tooltip="Go on until the run has made so many steps in all. Neutral: 0, as many as it was planned for.",
                ),
            ],
            outputs=OUTPUTS,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, model, run, steps):
        """Changes as the run goes on."""
        counters = jobs.counters_of(jobs.run_folder(run))
        return counters and counters[1]["step"]

    @classmethod
    def execute(cls, model, run, steps) -> io.NodeOutput:
        folder = jobs.run_folder(run)
        job = jobs.read(folder, model)
        if steps:
            job = replace(job, recipe=replace(job.recipe, run={**job.recipe.run, "steps": steps, "minutes": 0.0}))
        return trained(cls, job, folder)


class ExportRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_ExportRun",
            display_name="Export Run",
            category="distillery/distillation",
            description="Writes what Distill would do into a folder, for training without ComfyUI's window: python -m tools.distill.",
            search_aliases=["headless", "job", "train elsewhere", "distill", "cluster"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=inputs(),
            outputs=[io.String.Output("text", display_name="text", tooltip="The folder, and the command that trains it.")],
        )

    @classmethod
    def execute(
        cls, model, prompts, goal, quality, cfg, steps, minutes, memory, seed, name, latent=None, recipe=None, turbo_lora=None
    ) -> io.NodeOutput:
        if model.patches:
            raise ValueError("model has LoRAs on it, which a program could not load again: save the merged model, and load that.")
        job = job_of(model, prompts, goal, quality, cfg, steps, minutes, memory, seed, latent, recipe, turbo_lora)
        folder = jobs.run_folder(name if name.strip() else job.name())
        host_distill.check(job)
        jobs.settle(job, folder)
        given = "" if jobs.read_info(folder)["model"]["loader"] else " --model NAME_OR_FILE"
        command = f"COMFYUI_PATH={folder_paths.base_path} {sys.executable} -m tools.distill {folder}{given}"
        text = f"Folder: {folder}\nTo train it, in {host_turbo.PACK}: {command}"
        return io.NodeOutput(text, ui=show(cls, text))


NODES = [Distill, Continue, ExportRun]
