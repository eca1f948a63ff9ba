"""Further prompts and weaker models, evaluated beside ComfyUI's own positive and negative prompt."""

from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers

from ..samplers.core import complete
from ..samplers.guidance.contrast import WEAKER, Contrast
from .architectures import blocks_of
from .host import path_of
from .host_blocks import dropped
from .host_guidance import with_link


@dataclass(frozen=True)
class ContrastLink:
    """others(run) makes, for one sampling run, what answers for the other prediction: its ``name`` in reports; a ``prompt`` to be
    evaluated together with core's, or None and ``predict(...)`` for a call of its own; ``fits_windows``, whether it can follow
    context windows; and ``end()``.
    """

    rule: Contrast
    settings: dict
    others: object = field(repr=False)


def with_prompt(model, rule, settings, prompt):
    """A clone whose guidance also looks at the CONDITIONING ``prompt``, in the way of a ``Contrast``."""
    if any("hooks" in options for _, options in prompt):
        raise ValueError("prompt has hooks, a LoRA of its own or on a schedule, which only the positive and negative prompt can have.")
    return with_contrast(model, rule, settings, lambda run: Prompt(rule, prompt, run))


def with_weak_model(model, weak, settings):
    """A clone guided away from what another MODEL makes of the positive prompt. ValueError where it cannot stand beside the first."""
    check_weak(model, weak)
    model = with_contrast(model, WEAKER, settings, lambda run: WeakModel(weak, run))
    model.set_additional_models(f"distillery weak model {id(weak)}", [weak])  # so that core loads both
    return model


def with_dropped_blocks(model, start, end, settings):
    """A clone guided away from what it makes of the positive prompt itself without some blocks of its network: those whose middle
    lies from ``start`` to ``end`` of its depth, 0 to 1; the nearest to their mean if none does.
    """
    if start > end:
        raise ValueError(f"start is {start:g} and end is {end:g}: give a share of the network's depth to start at, and a larger one to end.")
    network = model.model.diffusion_model
    count = len(blocks_of(network) or [])
    places = [(i + 0.5) / count for i in range(count)]
    blocks = [i for i, place in enumerate(places) if start <= place <= end]
    blocks = blocks or sorted(range(count), key=lambda i: abs(places[i] - (start + end) / 2))[:1]
    with dropped(network, blocks or [0]):  # says so now if these cannot be left out
        return with_contrast(model, WEAKER, settings, lambda run: WithoutBlocks(blocks))


def with_contrast(model, rule, settings, others):
    settings = complete(rule.knobs, settings)
    return model.clone() if rule.is_neutral(settings) else with_link(model, ContrastLink(rule, settings, others))


def check_weak(model, weak):
    one, other = (m.get_model_object("latent_format") for m in (model, weak))
    if type(one) is not type(other) or one.latent_channels != other.latent_channels:
        raise ValueError(
            f"weak_model works on latents of another kind ({type(other).__name__}, {other.latent_channels} channels) than model "
            f"({type(one).__name__}, {one.latent_channels} channels): give a model of the same family."
        )
    paths = [path_of(m.get_model_object("model_sampling")) for m in (model, weak)]
    if paths[0].is_flow != paths[1].is_flow:
        raise ValueError(
            f"weak_model predicts {paths[1].prediction} and model {paths[0].prediction}: both must follow the same way from noise to "
            "picture. Give a model of the same family."
        )
    if weak.is_clone(model) and (weak.patches or model.patches) and weak.patches_uuid != model.patches_uuid:
        raise ValueError(
            "weak_model and model are one checkpoint with different LoRAs or patches of its weights, which cannot both be loaded: load "
            "the checkpoint once more for weak_model."
        )


class Prompt:
    """A further prompt, prepared by core together with the positive and negative one."""

    fits_windows = False

    def __init__(self, rule, prompt, run):
        self.name, self.guider = rule.other, run["guider"]
        self.key = f"{self.name} {len(self.guider.conds)}"
        self.guider.conds[self.key] = [{"prompt_type": rule.kind, **entry} for entry in comfy.sampler_helpers.convert_cond(prompt)]

    @property
    def prompt(self):
        return self.guider.conds[self.key]

    def end(self):
        pass


class WithoutBlocks:
    """The model itself, some blocks of its network left out."""

    name, prompt, fits_windows = "weak", None, True

    def __init__(self, blocks):
        self.blocks = blocks

    def predict(self, number, records, executor, model, positive, x, timestep, model_options):
        if "multigpu_clones" in model_options:
            raise ValueError("model runs on several GPUs, each with a copy of its network, of which blocks cannot be left out.")
        with dropped(model.diffusion_model, self.blocks):
            return executor(model, [None] * number + [positive], x, timestep, model_options)[number]

    def end(self):
        pass


class WeakModel:
    """Another MODEL that sees the positive prompt, prepared for it as core prepares it for the first."""

    name, prompt, fits_windows = "weak", None, False

    def __init__(self, weak, run):
        check_weak(run["guider"].model_patcher, weak)  # again: nodes after ours may have patched the model
        self.weak, self.run, self.positive = weak, run, None
        self.raw = [entry.copy() for entry in run["guider"].conds["positive"]]
        if any("hooks" in entry for entry in self.raw):
            raise ValueError(
                "positive has hooks, a LoRA of its own or on a schedule, which weak_model would not see: use Autoguidance without "
                "blocks, or remove one of the two."
            )
        self.owns = False

    def prepare(self, x, sample_sigmas):
        weak, run = self.weak, self.run
        self.model_options = comfy.model_patcher.create_model_options_clone(weak.model_options)
        options = self.model_options.setdefault("transformer_options", {})
        for name, hooks in (("wrappers", weak.wrappers), ("callbacks", weak.callbacks)):
            comfy.patcher_extension.merge_nested_dicts(options.setdefault(name, {}), hooks, copy_dict1=False)
        options["sample_sigmas"] = sample_sigmas
        if weak.model.current_patcher is None:
            self.owns = True
            weak.pre_run()
        latent, noise = run["latent_image"].to(x.device), run["noise"].to(x.device)
        latent = weak.model.process_latent_in(latent) if latent.count_nonzero() else latent
        self.positive = comfy.samplers.process_conds(
            weak.model, noise, {"positive": self.raw}, x.device, latent, run["denoise_mask"], run["seed"],
            latent_shapes=run["latent_shapes"],
        )["positive"]  # fmt: skip

    def predict(self, number, records, executor, model, positive, x, timestep, model_options):
        if self.positive is None:
            self.prepare(x, model_options["transformer_options"]["sample_sigmas"])
        for recorder in records:
            recorder.called([number], len(x))
        return comfy.samplers.calc_cond_batch(self.weak.model, [self.positive], x, timestep, self.model_options)[0]

    def end(self):
        if self.owns:
            self.weak.cleanup()
