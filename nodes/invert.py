"""The node that finds the noise which a picture comes from, and a SAMPLER that leads from there to the picture or an edit."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..samplers.solvers.reversible import Invertible
from . import host

FOREIGN_SIGMA = 1.01  # schedules made from rounded tables exceed the model's largest sigma by less


class Inversion(comfy.samplers.Sampler):
    """Runs a solver backwards over rising sigmas.

    Afterwards ``pair`` is what sampling has to start from, and ``latent`` what it makes of the LATENT that holds x, on the CPU.
    """

    def __init__(self, solver, settings):
        self.solver, self.settings = solver, settings

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):  # fmt: skip
        sampling, steps = model_wrap.inner_model.model_sampling, len(sigmas) - 1
        self.path = host.path_of(sampling)
        x = sampling.noise_scaling(sigmas[0], torch.zeros_like(latent_image), latent_image)

        def report(state):
            callback(state["i"], state["denoised"], state["x"], steps)

        with host.announced(steps, report, disable_pbar) as step_started:
            pair = self.solver.invert(model_wrap, x, sigmas.flip(0), extra_args, step_started, path=self.path, **self.settings)
        latent = pair[0].to(x)
        if self.path.alpha(sigmas[-1]) > 0:  # else core gives the latent no share in x: there is nothing to scale back
            latent = sampling.inverse_noise_scaling(sigmas[-1], latent)
        self.pair, self.sigmas, self.latent = tuple(state.cpu() for state in pair), sigmas.flip(0).cpu(), latent.cpu()
        return latent


class WayBack(comfy.samplers.KSAMPLER):
    """Samples from the pair that an inversion found, and refuses a run that would not lead back from it.

    KSAMPLER makes x from a latent in float32, which cannot hold the pair: x is checked, and the pair takes its place.
    """

    def __init__(self, inversion):
        super().__init__(host.as_sampler(inversion.solver.resuming(inversion.pair), inversion.settings).sampler_function)
        self.inversion = inversion

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):  # fmt: skip
        refuse_mask(denoise_mask)
        if noise.count_nonzero():
            raise ValueError("noise: the latent of Invert is the noise already. Turn add_noise off, or connect Disable Noise.")
        if not torch.equal(sigmas.cpu(), self.inversion.sigmas):
            raise ValueError("sigmas are not those of the inversion: connect the same SIGMAS to Invert and to the sampler.")
        here, there = host.path_of(model_wrap.inner_model.model_sampling).prediction, self.inversion.path.prediction
        if here != there:
            raise ValueError(f"model predicts {here} and that of Invert predicts {there}: connect the same model to both.")
        given, found = latent_image.cpu(), self.inversion.latent
        if given.shape != found.shape or (given - found).abs().max() > 0.01 * found.abs().max():
            raise ValueError(
                "latent_image is not the LATENT that came out of Invert together with this SAMPLER: connect that one, unchanged."
            )
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)


def refuse_mask(mask):
    if mask is not None:
        raise ValueError(
            "latent_image has a mask, and what a mask holds back cannot be inverted. Leave the mask out, and paste the edit into "
            "the picture afterwards, with ImageCompositeMasked."
        )


def invertible(sampler):
    """Its solver and settings. ValueError for a SAMPLER that cannot be run backwards."""
    solver, settings = host.solver_of(sampler)
    if isinstance(solver, Invertible):
        return solver, settings
    name = solver.title if solver else getattr(getattr(sampler, "sampler_function", sampler), "__name__", "this one")
    raise ValueError(
        f"sampler is {name}, which cannot be run backwards exactly{', as it draws noise' if solver and solver.stochastic else ''}. "
        "Connect an Invertible Sampler."
    )


def check_sigma_max(model, sigmas):
    largest = float(model.get_model_object("model_sampling").sigma_max)
    if sigmas[0] > FOREIGN_SIGMA * largest:
        raise ValueError(
            f"sigmas[0] is {sigmas[0]:g} and this model's noisiest level is {largest:g}: make sigmas with a scheduler that has "
            "this model."
        )


class Invert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Invert",
            display_name="Invert",
            category="distillery/samplers",
            description="Finds the noise that a picture comes from, exactly: sampling from it gives the picture, or an edit of it.",
            search_aliases=["unsampler", "inversion", "bdia", "edict", "ddim inversion", "edit", "reverse"],
            inputs=[
                io.Model.Input("model", tooltip="The model to invert with, and to sample with afterwards."),
                io.Conditioning.Input("positive", tooltip="Says what the picture shows now."),
                io.Conditioning.Input("negative", tooltip="The same as in sampling afterwards. Unused at cfg 1."),
                io.Float.Input(
                    "cfg", default=3.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Guidance scale, the same as in sampling afterwards. Lower keeps edits nearer to the picture. "
                    "Neutral: 1.",
                ),
                io.Sampler.Input("sampler", tooltip="An Invertible Sampler: the method, and its settings."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="As for sampling: falling, from a scheduler. Below denoise 1 only part of the noise is sought, which "
                    "keeps more of the picture.",
                ),
                io.Latent.Input("latent_image", tooltip="The picture, encoded with this model's VAE, without a mask."),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent",
                    tooltip="The noise. For a sampler that adds none: SamplerCustom with add_noise off, or Disable Noise.",
                ),
                io.Sampler.Output(
                    "sampler", display_name="sampler",
                    tooltip="For that sampler, with the same sigmas. It holds what the latent cannot, and takes other prompts.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, cfg, sampler, sigmas, latent_image) -> io.NodeOutput:
        solver, settings = invertible(sampler)
        solver.check_inversion(sigmas, **settings)
        check_sigma_max(model, sigmas)
        refuse_mask(latent_image.get("noise_mask"))
        latent = {key: value for key, value in latent_image.items() if not key.startswith("downscale_ratio")}
        ratios = (latent_image.get(f"downscale_ratio_{axis}") for axis in ("spacial", "temporal"))
        samples = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"], *ratios)
        if not samples.is_nested:
            host.check_channels(model.get_model_object("latent_format"), samples)

        guider, inversion = comfy.samplers.CFGGuider(model), Inversion(solver, settings)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        found = guider.sample(
            samples * 0, samples, inversion, sigmas.flip(0),
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=0,
        )  # fmt: skip
        latent["samples"] = found.to(comfy.model_management.intermediate_device())
        return io.NodeOutput(latent, WayBack(inversion))


NODES = [Invert]
