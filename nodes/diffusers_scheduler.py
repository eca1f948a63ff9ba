"""A node for diffusers' schedulers: one of them, with its config as published, as SAMPLER and SIGMAS."""

from comfy_api.latest import io

from ..samplers.diffusers_bridge import USABLE, prepare
from . import host_diffusers
from .display import show
from .host import token_count

FROM_CONFIG = "as config says"


def values_input(what):
    return io.String.Input("values", default="", tooltip=f"{what}, one a step, falling, with commas between. Their number goes before steps.")


class DiffusersScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_DiffusersScheduler",
            display_name="Diffusers Scheduler",
            category="distillery/samplers",
            description="Any diffusers scheduler with its scheduler_config.json: the picture that its pipeline makes. Needs `pip install "
            "diffusers`.",
            search_aliases=[
                "diffusers", "scheduler_config.json", "pipeline", "ddim", "ddpm", "pndm", "plms", "lms", "deis", "unipc", "dpm solver",
                "kdpm2", "ipndm", "lcm", "tcd", "scm", "edm", "flow match", "cogvideox", "sampler",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled. Its noise levels are compared with those of config."),
                io.Combo.Input(
                    "scheduler", options=[FROM_CONFIG, *USABLE], default="DDIMScheduler",
                    tooltip="The class. Goes before config's _class_name, as from_config of another scheduler's config does.",
                ),
                io.String.Input(
                    "config", default="", multiline=True,
                    tooltip="scheduler/scheduler_config.json of the model's repository, as published. What it does not say comes from model. "
                    "Neutral: empty, diffusers' defaults with model's own noise levels.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="num_inference_steps, as a pipeline is given it."),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="strength of the image-to-image pipelines: the last share of these steps is run. Neutral: 1.",
                ),
                io.DynamicCombo.Input(
                    "spacing",
                    options=[
                        io.DynamicCombo.Option("own", []),
                        io.DynamicCombo.Option("even", []),
                        io.DynamicCombo.Option("timesteps", [values_input("Timesteps, such as 999, 749, 499, 249")]),
                        io.DynamicCombo.Option("sigmas", [values_input("Noise levels without the 0 at the end, before any shift")]),
                    ],
                    tooltip="own: by config. even: sigmas 1 to 1 / steps before the shift, as the pipelines of Flux and Qwen-Image pass them. "
                    "timesteps, sigmas: a list of yours, where the scheduler takes one. Neutral: own.",
                ),
                io.Latent.Input("latent", optional=True, tooltip="The latent to be sampled: use_dynamic_shifting goes by its size."),
                io.Float.Input(
                    "mu", default=0.0, min=0.0, max=20.0, step=0.01, optional=True, advanced=True,
                    tooltip="The shift of use_dynamic_shifting, where a pipeline has a formula of its own. Neutral: 0, FluxPipeline's, by latent.",
                ),
                io.Float.Input(
                    "eta", default=-1.0, min=-1.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Share of new noise in DDIM, gamma of TCD. Neutral: -1, the scheduler's own (DDIM 0, TCD 0.3).",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced, with the sigmas of this node, whole or split."),
                io.Sigmas.Output(tooltip="The levels at which its steps begin, then 0."),
                io.String.Output("text", display_name="text", tooltip="Timesteps, evaluations, and what was taken from where."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, scheduler, config, steps, denoise, spacing, latent=None, mu=0.0, eta=-1.0) -> io.NodeOutput:
        bridge, text = prepare(
            config, host_diffusers.facts_of(model), steps,
            choice=None if scheduler == FROM_CONFIG else scheduler,
            grid=spacing["spacing"], values=spacing.get("values", ""),
            mu=mu or None, eta=None if eta < 0 else eta,
            tokens=None if latent is None else token_count(model, latent),
        )  # fmt: skip
        sigmas, line = bridge.share(denoise)
        text = f"{text}\n{line}" if line else text
        return io.NodeOutput(host_diffusers.sampler_of(bridge), sigmas, text, ui=show(cls, text))


NODES = [DiffusersScheduler]
