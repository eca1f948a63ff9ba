"""Nodes for turbo LoRAs: saved and loaded with the way they are to be sampled, applied, merged and made smaller."""

import os

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..distill.formats import DIALECTS, merge, resize
from ..distill.formats.profile import BASE, FIGURES, RECIPE, usage
from ..samplers.turbo import PROFILES
from . import host_turbo
from . import host_turbo_foreign as foreign
from .display import show
from .host_turbo import TurboLoraType, rounded
from .host_turbo_models import carried, carrying, carrying_recorded
from .host_turbo_sampling import AUTO, prepared

LORA_PROFILES = [key for key, profile in PROFILES.items() if profile.form != "checkpoint"]
LICENCE = "modelspec.license"  # in the header of a file
LATENT = io.Latent.Input(
    "latent", optional=True, tooltip="The latent to be sampled, for families whose noise levels go by its size. Else not needed."
)

APPLIED = [
    io.Model.Output(tooltip="The model with the LoRA applied."),
    io.Sampler.Output(tooltip="The sampler that the LoRA was made for: for SamplerCustom."),
    io.Sigmas.Output(tooltip="The noise levels that it was made for: for SamplerCustom."),
    io.Float.Output("cfg", display_name="cfg", tooltip="The CFG that it was made for; 1 is none."),
    io.String.Output("text", display_name="text", tooltip="Steps, sampler, CFG and strength, and how the LoRA was made."),
    TurboLoraType.Output("turbo_lora", display_name="turbo_lora", tooltip="The LoRA itself: for Compare Steps, or to merge or resize."),
]
STRENGTH = io.Float.Input(
    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
    tooltip="Times the strength that the LoRA records. Neutral: 1, as it was made. 0 is the model without it.",
)  # fmt: skip
OTHER = io.Boolean.Input(
    "other_checkpoints", default=False, optional=True, advanced=True,
    tooltip="Take it for another checkpoint of the same architecture too, such as a fine-tune or a quantised one: it may fit less "
    "well. Neutral: off, which refuses.",
)  # fmt: skip
TURBO = TurboLoraType.Input("turbo_lora", tooltip="From Distill, Load Turbo LoRA or a node that changed it.")


def apply(cls, model, turbo, strength, other_checkpoints):
    """The outputs APPLIED."""
    patched = host_turbo.applied(model, turbo, strength * turbo.profile.strength, other_checkpoints)
    if strength:
        patched = carrying_recorded(patched, turbo.profile, turbo.name, turbo.metadata.get(LICENCE))
    text = described(turbo) + replaced(model, patched)
    return io.NodeOutput(patched, *host_turbo.sampling(turbo), text, turbo, ui=show(cls, text))


def apply_foreign(cls, model, path, lora, strength, key, steps, latent):
    """The outputs APPLIED for a file that another program wrote. turbo_lora is a block with the reason where it is no plain LoRA."""
    file = foreign.read(path, lora)
    choice = foreign.choose(file, model, key, steps)
    patched, changed = foreign.applied(model, file, strength * choice.profile.strength)
    patched = carrying(patched, choice.profile, choice.steps, f"the LoRA {file.name} is for it: {choice.why}")
    found = prepared(patched, choice, 1.0, latent)
    made = found.model if strength else model
    try:
        turbo = foreign.as_turbo_lora(model, file, choice, found.sigmas)
    except ValueError as error:
        turbo = ExecutionBlocker(f"turbo_lora of {file.name}: {error}")
    text = f"{changed}\n{found.text}{replaced(model, made)}"
    if choice.profile.boundary is not None:
        text += "\nFor a pair of networks: load the other LoRA onto the other model, and connect both to Turbo Sampling (Two Networks)."
    return io.NodeOutput(made, found.sampler, found.sigmas, found.cfg, text, turbo, ui=show(cls, text))


def replaced(model, made):
    """A line where the MODEL came with another turbo LoRA, whose sampling profile this one's took the place of; else nothing."""
    before, after = carried(model), carried(made)
    if before is None or after is before:
        return ""
    return (
        f"\nThe model came with a turbo LoRA already, for {before.profile.title}: the later decides how it is sampled, "
        f"{after.profile.title}."
    )


def described(turbo):
    """What a LoRA says about itself, a fact a line."""
    recipe, figures = turbo.recorded(RECIPE), turbo.recorded(FIGURES)
    ranks = sorted({adapter.rank for _, adapter in turbo.lora.items()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"rank {ranks[0]} to {ranks[-1]}"
    lines = [f"{turbo.name}: {usage(turbo.profile)}", f"{len(turbo.lora)} layers of {rank}, for {turbo.recorded(BASE).get('architecture', 'any model')}."]
    if "objective" in recipe:
        lines.append(f"Made by {recipe['objective']}.")
    if "merged" in recipe:
        lines.append("Merged of " + ", ".join(f"{part['name']} at {part['weight']:g}" for part in recipe["merged"]) + ".")
    lines += [f"{name}: {value:g}" for name, value in figures.items() if isinstance(value, (int, float))]
    if licence := turbo.metadata.get(LICENCE):
        lines.append(f"Licence: {licence}")
    return "\n".join(lines)


class SaveTurboLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_SaveTurboLora",
            display_name="Save Turbo LoRA",
            category="distillery/distillation",
            description="Writes a turbo LoRA into ComfyUI's loras folder, with its sampling profile, and checks that core loads it.",
            search_aliases=["export lora", "save lora", "kohya", "diffusers", "peft", "turbo"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made for, with or without it: it names the layers."),
                TURBO,
                io.String.Input(
                    "name", default="turbo/my-model-4-steps",
                    tooltip="In ComfyUI's first loras folder; / makes folders. A file that is there stays: the next free number is added.",
                ),
                io.Combo.Input(
                    "dialect", options=list(DIALECTS), default="core",
                    tooltip="core: ComfyUI's own names, for every model. kohya: sd-scripts'; A1111 and Forge read it. diffusers: PEFT's, "
                    "for Python programs. ComfyUI loads all three.",
                ),
                io.String.Input(
                    "licence", default="", optional=True, advanced=True,
                    tooltip="A note for the file's header: what the licence of the base model asks of what is made from it. Neutral: empty.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, optional=True, advanced=True,
                    tooltip="Replace a file of this name. It stays whole until the new one is. Neutral: off.",
                ),
            ],
            outputs=[
                io.String.Output("path", display_name="path", tooltip="Where the file is."),
                TurboLoraType.Output("turbo_lora", display_name="turbo_lora", tooltip="The LoRA as the file has it."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, turbo_lora, name, dialect, licence="", overwrite=False) -> io.NodeOutput:
        path, saved = host_turbo.save(turbo_lora, model, name, dialect, licence, overwrite)
        size = os.path.getsize(path) / 2**20
        text = f"{path}\n{size:.1f} MiB, dialect {dialect}. ComfyUI's LoRA loader makes of it what the graph uses.\n{described(saved)}"
        return io.NodeOutput(str(path), saved, ui=show(cls, text))


class LoadTurboLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_LoadTurboLora",
            display_name="Load Turbo LoRA",
            category="distillery/distillation",
            description="Applies a LoRA for few steps, ours or another's, and gives the sampler, noise levels and CFG that it was made for.",
            search_aliases=[
                "lora loader", "turbo", "lcm", "lightning", "few-step", "speed lora", "hyper-sd", "dmd2", "tcd", "pcm", "lightx2v", "causvid",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made for."),
                io.Combo.Input(
                    "lora", options=[*folder_paths.get_filename_list("loras"), *host_turbo.BUNDLED],
                    tooltip="A LoRA for few steps, from ComfyUI's loras folders: of this pack, or one of the families in docs/turbo.md. bundled: "
                    "comes with the pack, for its demo models.",
                ),
                STRENGTH,
                OTHER,
                io.Combo.Input(
                    "profile", options=[AUTO, *LORA_PROFILES], default=AUTO, optional=True,
                    tooltip="Which family the LoRA is of. Neutral: auto, which goes by its metadata, layers, shapes and name, and says why.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=1000, optional=True,
                    tooltip="How many; others than are offered are refused. Neutral: 0, those that the file is for or else the usual number.",
                ),
                LATENT,
            ],
            outputs=APPLIED,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, model, lora, strength, other_checkpoints=False, profile=AUTO, steps=0, latent=None):
        """Changes with the file."""
        return os.path.getmtime(host_turbo.path_of(lora))

    @classmethod
    def execute(cls, model, lora, strength, other_checkpoints=False, profile=AUTO, steps=0, latent=None) -> io.NodeOutput:
        path = host_turbo.path_of(lora)
        if not host_turbo.is_ours(path):
            return apply_foreign(cls, model, path, lora, strength, profile, steps, latent)
        turbo = host_turbo.load(lora, model, other_checkpoints)
        if profile != AUTO:
            raise ValueError(f"profile is {profile}, and {path.name} records how it is to be sampled: set profile to auto.")
        if steps not in (0, turbo.profile.steps):
            raise ValueError(f"steps is {steps}, and {path.name} was made for {turbo.profile.steps}: set steps to that, or to 0.")
        return apply(cls, model, turbo, strength, other_checkpoints)


class ApplyTurboLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_ApplyTurboLora",
            display_name="Apply Turbo LoRA",
            category="distillery/distillation",
            description="Applies a turbo LoRA from the graph, at any strength: vary strength with Sweep to see what it does.",
            search_aliases=["lora strength", "strength sweep", "turbo", "patch model"],
            hidden=[io.Hidden.unique_id],
            inputs=[io.Model.Input("model", tooltip="The model that the LoRA was made for."), TURBO, STRENGTH, OTHER],
            outputs=APPLIED,
        )

    @classmethod
    def execute(cls, model, turbo_lora, strength, other_checkpoints=False) -> io.NodeOutput:
        return apply(cls, model, turbo_lora, strength, other_checkpoints)


class MergeTurboLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_MergeTurboLoras",
            display_name="Merge Turbo LoRAs",
            category="distillery/distillation",
            description="Makes one LoRA that does what two do together, to be sampled as the first.",
            search_aliases=["combine loras", "merge lora", "add lora", "turbo"],
            inputs=[
                TurboLoraType.Input("turbo_lora", tooltip="The first. How to sample comes from it."),
                TurboLoraType.Input("other", tooltip="The second, made for the same model."),
                io.Float.Input("weight", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Of the first. Neutral: 1."),
                io.Float.Input("other_weight", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Of the second. Neutral: 0."),
                io.Int.Input(
                    "rank", default=0, min=0, max=1024,
                    tooltip="The most a layer may have, by the best approximation there is. Neutral: 0, the sum of both, which is exact.",
                ),
            ],
            outputs=[TurboLoraType.Output("turbo_lora", display_name="turbo_lora", tooltip="For Apply Turbo LoRA or Save Turbo LoRA.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, turbo_lora, other, weight, other_weight, rank) -> io.NodeOutput:
        host_turbo.check_same_base(turbo_lora, other)
        parts = [(turbo_lora, weight), (other, other_weight)]
        merged = merge([(turbo.lora, strength * turbo.profile.strength / turbo_lora.profile.strength) for turbo, strength in parts], rank or None)
        recipe = {"merged": [{"name": turbo.name, "weight": strength} for turbo, strength in parts]}
        return io.NodeOutput(turbo_lora.changed(rounded(merged), recipe, f"{turbo_lora.name} + {other.name}"))


class ResizeTurboLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_ResizeTurboLora",
            display_name="Resize Turbo LoRA",
            category="distillery/distillation",
            description="Makes a LoRA of lower rank, and so a smaller file, that does most nearly the same.",
            search_aliases=["shrink lora", "lora rank", "svd", "turbo"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                TURBO,
                io.Int.Input("rank", default=16, min=0, max=1024, tooltip="The most a layer may have. Neutral: 0, no limit."),
                io.Float.Input(
                    "energy", default=1.0, min=0.01, max=1.0, step=0.01, advanced=True,
                    tooltip="The share of each layer's squared change to keep, in the lowest rank that does. Neutral: 1.",
                ),
            ],
            outputs=[
                TurboLoraType.Output("turbo_lora", display_name="turbo_lora", tooltip="For Apply Turbo LoRA or Save Turbo LoRA."),
                io.String.Output("text", display_name="text", tooltip="The ranks, and how much was lost."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, turbo_lora, rank, energy) -> io.NodeOutput:
        lora, report = resize(turbo_lora.lora, rank or None, energy)
        made = turbo_lora.changed(rounded(lora), turbo_lora.recorded(RECIPE), turbo_lora.name)
        worst = max(report, key=lambda path: report[path].lost)
        before, after = (sum(p.numel() for p in each.parameters()) for each in (turbo_lora.lora, made.lora))
        ranks = [resized.rank for resized in report.values()]
        text = (
            f"{after:,} numbers instead of {before:,}; rank {min(ranks)} to {max(ranks)}. Lost of a layer's change: "
            f"{sum(resized.lost for resized in report.values()) / len(report):.1%} on average, {report[worst].lost:.1%} at most, in {worst}."
        )  # fmt: skip
        return io.NodeOutput(made, text, ui=show(cls, text))


NODES = [SaveTurboLora, LoadTurboLora, ApplyTurboLora, MergeTurboLoras, ResizeTurboLora]
