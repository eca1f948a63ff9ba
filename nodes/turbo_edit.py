"""The node that edits a picture with a distilled model, in a few steps and without inverting it."""

import uuid

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..samplers import noise as noises
from ..samplers.turbo import sample_ddcm
from . import host
from . import host_turbo_sampling as wiring
from .display import show
from .host_turbo_models import path_of
from .turbo_sampling import PROFILE, STEPS, check_negative, with_guidance

EDITED = "Edited by DDCM (InfEdit, arXiv:2312.04965) at these noise levels, in place of that sampler: each step evaluates both prompts."


class Editing(comfy.samplers.Sampler):
    """Edits the latent image of a run whose guider has a "source" among its prompts.

    For each prediction that one, or the positive, is the guider's only positive: hooks on the run see plain CFG. path: of the MODEL.
    items: which items of a batch these are, for their seeds.
    """

    def __init__(self, path, items):
        self.path, self.items = path, items

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):  # fmt: skip
        steps, prompts = len(sigmas) - 1, model_wrap.conds
        masked = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        masked.latent_image = latent_image
        seeds = noises.item_seeds(extra_args["seed"], max(self.items) + 1)
        seeds = [seeds[item] for item in self.items]
        drawn = noises.gaussian(latent_image, seeds)

        def shared(noise):
            masked.noise = noise  # what a mask holds back is noised by the same
            return noise

        def on(positive, negative):
            def denoise(x, sigma, **given):
                model_wrap.conds = {"positive": positive, "negative": negative}
                return masked(x, sigma, **given)

            return denoise

        def report(state):
            callback(state["i"], state["denoised"], state["x"], steps)

        apart = [{**entry, "uuid": uuid.uuid4()} for entry in prompts["negative"]]  # caches know a prompt by its uuid
        try:
            with host.announced(steps, report, disable_pbar) as step_started:
                return sample_ddcm(
                    on(prompts["positive"], prompts["negative"]), on(prompts["source"], apart), latent_image, sigmas,
                    shared(noises.initial(latent_image.shape, seeds).to(latent_image)), lambda *levels: shared(drawn(*levels)),
                    path=self.path, extra_args={**extra_args, "denoise_mask": denoise_mask}, callback=step_started,
                )  # fmt: skip
        finally:
            model_wrap.conds = prompts


def edited(run, source, target, negative, latent, seed):
    """A LATENT. run: wiring.Prepared."""
    path = path_of(run.model)
    made = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
    ratios = (latent.get(f"downscale_ratio_{axis}") for axis in ("spacial", "temporal"))
    samples = comfy.sample.fix_empty_latent_channels(run.model, latent["samples"], *ratios)
    if not samples.is_nested:
        host.check_channels(run.model.get_model_object("latent_format"), samples)
    batch = samples.unbind()[0] if samples.is_nested else samples
    items = list(latent.get("batch_index", range(len(batch))))

    guider = comfy.samplers.CFGGuider(run.model)
    guider.inner_set_conds({"positive": target, "negative": negative, "source": source})
    guider.set_cfg(run.cfg)
    found = guider.sample(
        samples * 0, samples, Editing(path, items), run.sigmas, denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(run.model, len(run.sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
    )  # fmt: skip
    return made | {"samples": found.to(comfy.model_management.intermediate_device())}


def check_takes_pictures(profile):
    if profile.knobs.get("start") == "unit_noise":
        raise ValueError(f"{profile.title} makes a picture of pure noise only, and Turbo Edit changes one: choose a profile of several steps.")


def check_picture(latent):
    samples = latent["samples"]
    if not any(part.any() for part in (samples.unbind() if samples.is_nested else [samples])):
        raise ValueError(
            "latent_image is empty, and Turbo Edit changes a picture: encode one with VAE Encode. To draw a new one, use Turbo KSampler."
        )


class TurboEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_TurboEdit",
            display_name="Turbo Edit",
            category="distillery/turbo",
            description="Edits a picture by its description, in a few steps of a distilled model and without inversion (InfEdit).",
            search_aliases=["infedit", "ddcm", "edit", "image editing", "prompt to prompt", "virtual inversion", "lcm", "turbo", "flowedit"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="A distilled model, or one with its turbo LoRA applied."),
                io.Conditioning.Input("source", tooltip="Says what the picture shows now."),
                io.Conditioning.Input(
                    "target", tooltip="Says what it is to show: the same words but for what is to change. Neutral: the source, which gives "
                    "the picture back.",
                ),
                io.Latent.Input("latent_image", tooltip="The picture, encoded with this model's VAE. What a noise mask leaves out is kept."),
                PROFILE, STEPS,
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Of the noise; item i of a batch is edited as by seed + i alone.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01,
                    tooltip="Share of the run, from its end; less changes less. A student that knows only some noise levels starts at the "
                    "noisiest of them within the share. Neutral: 1, all of it.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="For both prompts. Evaluated only where the profile's CFG is not 1; else not needed."
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The edited latent: decode it with the VAE."),
                io.String.Output("text", display_name="text", tooltip="What profile was chosen and why, its source and licence."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, source, target, latent_image, profile, steps, seed, denoise, negative=None) -> io.NodeOutput:
        choice = wiring.choose(model, profile, steps)
        check_takes_pictures(choice.profile)
        run = wiring.prepared(model, choice, denoise, latent_image)
        wiring.check_one_network(choice.profile, run.sigmas)
        check_negative(choice.profile, negative)
        check_picture(latent_image)
        source, target = (with_guidance(choice.profile, prompt) for prompt in (source, target))
        latent = edited(run, source, target, target if negative is None else negative, latent_image, seed)
        text = f"{run.text}\n{EDITED}"
        return io.NodeOutput(latent, text, ui=show(cls, text))


NODES = [TurboEdit]
