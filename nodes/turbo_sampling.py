"""Nodes that sample distilled models the way they were made to be sampled, and that say where a graph does not."""

import node_helpers
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..samplers.turbo import PROFILES
from . import host_turbo_runs as sampling
from . import host_turbo_sampling as wiring
from . import turbo_text
from .display import show
from .host_turbo_sampling import AUTO

PROFILE = io.Combo.Input(
    "profile", options=[AUTO, *PROFILES], default=AUTO,
    tooltip="Which distilled model this is. auto goes by what Load Turbo LoRA applied, then by the checkpoint's file name, then by the "
    "architecture where that decides (Flux.1 schnell), and says which it took and why. The list, with sources: docs/turbo.md.",
)  # fmt: skip
STEPS = io.Int.Input(
    "steps", default=0, min=0, max=1000,
    tooltip="How many; others than the profile offers are refused. Neutral: 0, those that the file is for or else the profile's own.",
)  # fmt: skip
DENOISE = io.Float.Input(
    "denoise", default=1.0, min=0.01, max=1.0, step=0.01,
    tooltip="Share of the run, from its end; less keeps more of the input latent. A student that knows only some noise levels starts at "
    "the noisiest of them within the share. Neutral: 1, all of it.",
)  # fmt: skip
LATENT = io.Latent.Input(
    "latent", optional=True, tooltip="The latent to be sampled, for profiles whose noise levels go by its size. Else not needed."
)
HIGH, LOW = (
    io.Model.Input(f"{part}_noise_model", tooltip=f"The network for {part} noise, with its own LoRA if there is one.")
    for part in ("high", "low")
)
SAMPLER = io.Sampler.Output(tooltip="The sampler that the model was made for: for SamplerCustom.")
CFG = io.Float.Output("cfg", display_name="cfg", tooltip="The CFG that the model was made for; 1 is none, and half the work.")
NOTHING = "Turbo Check was given no {0}, so none comes out: connect its {0} input, or what you need it for to where it is from."
TEXT = io.String.Output("text", display_name="text", tooltip="What was chosen and why, its source and licence, and what is not confirmed.")


def check_negative(profile, negative):
    """ValueError where a profile that is guided gets no negative prompt."""
    if negative is None and profile.cfg != 1:
        raise ValueError(f"negative is not connected, and {profile.title} is sampled at CFG {profile.cfg:g}, which needs one. Connect it.")


def is_zero(prompt):
    """Whether a CONDITIONING is one of core's ConditioningZeroOut."""
    return not any(entry[0].count_nonzero() for entry in prompt)


def with_guidance(profile, prompt):
    """CONDITIONING with the embedded guidance of a profile that has one, unless the prompt has its own."""
    if profile.guidance is None or any("guidance" in entry[1] for entry in prompt):
        return prompt
    return node_helpers.conditioning_set_values(prompt, {"guidance": profile.guidance})


class TurboSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_TurboSampling",
            display_name="Turbo Sampling",
            category="distillery/turbo",
            description="The sampler, noise levels, shift and CFG that a distilled model was made for: turbo, Lightning, LCM, DMD2, schnell.",
            search_aliases=[
                "turbo", "lightning", "lcm", "tcd", "hyper-sd", "dmd2", "schnell", "distilled", "few-step", "scheduler", "shift",
                "sdturboscheduler", "z-image turbo", "lightx2v", "qwen lightning",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="A distilled model, or one with its turbo LoRA applied."), PROFILE, STEPS, DENOISE, LATENT,
            ],
            outputs=[
                io.Model.Output(tooltip="The model, patched where the profile asks for it (shift, x0) and else as it came."),
                SAMPLER,
                io.Sigmas.Output(tooltip="The noise levels that the model was made for: for SamplerCustom."),
                CFG, TEXT,
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, profile, steps, denoise, latent=None) -> io.NodeOutput:
        choice = wiring.choose(model, profile, steps)
        found = wiring.prepared(model, choice, denoise, latent)
        wiring.check_one_network(choice.profile, found.sigmas)
        return io.NodeOutput(found.model, found.sampler, found.sigmas, found.cfg, found.text, ui=show(cls, found.text))


class TurboStages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_TurboStages",
            display_name="Turbo Sampling (Two Networks)",
            category="distillery/turbo",
            description="Turbo Sampling for a pair of networks, such as Wan 2.2's for high and low noise: the levels split where they change.",
            search_aliases=["wan 2.2", "high noise", "low noise", "two stages", "split sigmas", "lightx2v", "moe", "boundary"],
            hidden=[io.Hidden.unique_id],
            inputs=[HIGH, LOW, PROFILE, STEPS, DENOISE, LATENT],
            outputs=[
                io.Model.Output("high_model", display_name="high_model", tooltip="For the first SamplerCustom, with noise added."),
                io.Model.Output("low_model", display_name="low_model", tooltip="For the second, without: add_noise off. No noise mask."),
                SAMPLER,
                io.Sigmas.Output("high_sigmas", display_name="high_sigmas", tooltip="Of the first: down to where the second takes over."),
                io.Sigmas.Output("low_sigmas", display_name="low_sigmas", tooltip="Of the second: from there to 0."),
                CFG, TEXT,
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, high_noise_model, low_noise_model, profile, steps, denoise, latent=None) -> io.NodeOutput:
        high, low, sigmas = wiring.prepared_pair(high_noise_model, low_noise_model, profile, steps, denoise, latent)
        return io.NodeOutput(high.model, low.model, high.sampler, *sigmas, high.cfg, high.text, ui=show(cls, high.text))


class TurboKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_TurboKSampler",
            display_name="Turbo KSampler",
            category="distillery/turbo",
            description="Samples a distilled model the way it was made for: no steps, sampler, scheduler or CFG to look up.",
            search_aliases=["ksampler", "turbo", "lightning", "lcm", "dmd2", "schnell", "distilled", "few-step", "fast sampler"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="A distilled model, or one with its turbo LoRA applied."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Latent.Input("latent_image", tooltip="An empty latent; or a picture's, with denoise below 1, and a noise mask to inpaint."),
                PROFILE, STEPS,
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Of the noise.",
                ),
                DENOISE,
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What to stay away from. Evaluated only where the profile's CFG is not 1; else not needed."
                ),
                io.Model.Input(
                    "low_noise_model", optional=True,
                    tooltip="Only for profiles of two networks, such as Wan 2.2: the one for low noise, while model is the one for high noise.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The sampled latent: decode it with the VAE."), TEXT],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, latent_image, profile, steps, seed, denoise, negative=None, low_noise_model=None
    ) -> io.NodeOutput:  # fmt: skip
        if low_noise_model is not None:
            high, low, sigmas = wiring.prepared_pair(model, low_noise_model, profile, steps, denoise, latent_image)
            runs = list(zip((high, low), sigmas))
        else:
            choice = wiring.choose(model, profile, steps)
            sampling.check_empty(choice.profile, latent_image)
            high = wiring.prepared(model, choice, denoise, latent_image)
            wiring.check_one_network(choice.profile, high.sigmas)
            runs = [(high, high.sigmas)]
        check_negative(high.choice.profile, negative)
        positive = with_guidance(high.choice.profile, positive)
        latent = sampling.sampled(runs, positive, positive if negative is None else negative, latent_image, seed)
        return io.NodeOutput(latent, high.text, ui=show(cls, high.text))


class TurboCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_TurboCheck",
            display_name="Turbo Check",
            category="distillery/turbo",
            description="Warns where a graph contradicts the profile of its distilled model, and stops where only noise could come of it.",
            search_aliases=["validate", "warn", "lint", "wrong cfg", "wrong shift", "wrong steps", "turbo", "lightning", "noise"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that is to be sampled."),
                PROFILE,
                io.Sampler.Input("sampler", optional=True, tooltip="What it is to be sampled with. Not connected: not looked at."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Where it is to be sampled. Not connected: not looked at."),
                io.Float.Input("cfg", optional=True, force_input=True, tooltip="At which CFG. Not connected: not looked at."),
                io.Conditioning.Input(
                    "negative", optional=True,
                    tooltip="A negative prompt with words in it, to be told if it has no effect: an empty text looks like any other here, a zeroed-out "
                    "one counts as none. Not connected: not looked at.",
                ),
                io.Boolean.Input(
                    "when_sampling", default=True, optional=True, advanced=True,
                    tooltip="Look again when the MODEL is sampled, at the CFG, sampler and noise levels really used; warnings then go to "
                    "ComfyUI's log. The picture stays the same bit for bit. Neutral: off.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model."),
                io.Sampler.Output(tooltip="The sampler that came in."),
                io.Sigmas.Output(tooltip="The noise levels that came in."),
                io.Float.Output("cfg", display_name="cfg", tooltip="The CFG that came in."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="The negative prompt that came in."),
                io.String.Output("text", display_name="text", tooltip="Each contradiction, with the remedy; or that there is none."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, profile, sampler=None, sigmas=None, cfg=None, negative=None, when_sampling=True) -> io.NodeOutput:
        choice = wiring.choose(model, profile)
        found = wiring.problems_of(model, choice.profile, sampler, sigmas, cfg, negative and not is_zero(negative))
        wiring.refuse(found)
        if when_sampling:
            model = wiring.with_check(model, choice.profile)
        text = f"{choice.profile.title}: {choice.why}.\n{turbo_text.found(found)}"
        given = {"sampler": sampler, "sigmas": sigmas, "cfg": cfg, "negative": negative}
        passed = [ExecutionBlocker(NOTHING.format(name)) if value is None else value for name, value in given.items()]
        return io.NodeOutput(model, *passed, text, ui=show(cls, text))


NODES = [TurboSampling, TurboKSampler, TurboStages, TurboCheck]
