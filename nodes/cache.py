"""Nodes that skip evaluations of the network."""

from collections.abc import Callable
from dataclasses import dataclass

from comfy_api.latest import io

from ..samplers.caching import FORECASTS, POLICIES
from ..samplers.caching.presets import PRESETS
from ..samplers.core import Knob
from .guidance import outputs, reported
from .host_cache import Plan, with_cache
from .host_sites import Blocks, Prediction
from .host_sites_layers import LEVELS, PLACES, Layers
from .host_sites_parts import Parts
from .host_sites_unet import DeepBranch, Encoder
from .inputs import chosen, method_input

MODEL = io.Model.Input("model", tooltip="Any model. Put this node last before the sampler, after LoRA and guidance nodes.")
StepMask = io.Custom("DISTILLERY_STEP_MASK")
MEMORY = (
    io.Boolean.Input(
        "offload", default=False, optional=True, advanced=True,
        tooltip="Keep what is stored for later steps in the computer's memory instead of the GPU's: less of the GPU's, and slower. "
        "Neutral: off.",
    ),
    io.Float.Input(
        "memory_limit", default=0.0, min=0.0, max=1e6, step=16.0, optional=True, advanced=True,
        tooltip="In MiB. If what is stored for later steps takes more, it is dropped, and the run goes on uncached; the report says so. "
        "Neutral: 0, no limit.",
    ),
)  # fmt: skip
OUTPUT = "The same model, which skips what it can do without."


@dataclass(frozen=True)
class Place:
    """A site as users meet it."""

    title: str
    source: str
    good_for: str
    make: Callable
    knobs: tuple[Knob, ...] = ()


SITES = {
    "prediction": Place("Whole prediction", "as in EasyCache, arXiv:2507.02860", "every network", Prediction),
    "blocks": Place(
        "Blocks", "as in First Block Cache and TeaCache, arXiv:2411.19108", "transformers", Blocks,
        (
            Knob("first", 1, "So many first blocks always run; what they change is what some policies look at.", min=0, max=100, step=1),
            Knob("last", 0, "So many last blocks always run.", min=0, max=100, step=1),
        ),
    ),
    "deep_branch": Place(
        "Deep branch of a UNet", "DeepCache, arXiv:2312.00858", "Stable Diffusion 1, 2, XL", DeepBranch,
        (Knob("depth", 1, "How many of the outermost input blocks always run.", min=1, max=12, step=1),),
    ),
    "encoder": Place(
        "Encoder of a UNet", "Faster Diffusion, arXiv:2312.09608", "Stable Diffusion 1, 2, XL", Encoder,
        (
            Knob("parallel", False, "The output blocks of all skipped steps up to the next evaluation run as one batch: faster where the "
                 "GPU has room, and more memory. For policies interval and mask; with a ControlNet one after another all the same.",
                 advanced=True),
        ),
    ),
    "layers": Place(
        "Layers of a UNet", "A-SDM's feature inheritance, arXiv:2406.00210", "Stable Diffusion 1, 2, XL, Stable Video Diffusion", Layers,
        (
            Knob("level", "blocks", "Which layers: resblocks, transformers, or blocks, which is both.", options=tuple(LEVELS)),
            Knob("where", "all", "Those of the encoder (and the middle), of the decoder, or all.", options=PLACES),
        ),
    ),
    "self_attention": Place("Self-attention", "PAB, arXiv:2408.12588", "networks whose blocks have one of their own", lambda: Parts("self-attention")),
    "cross_attention": Place("Cross-attention", "PAB, arXiv:2408.12588", "networks that read the prompt by it", lambda: Parts("cross-attention")),
    "mlp": Place("Feed-forward parts", "PAB, arXiv:2408.12588", "most networks", lambda: Parts("mlp")),
}  # fmt: skip


class Cache(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        lines = [f"{name}: {preset.title}, {preset.source}. For {preset.good_for}." for name, preset in PRESETS.items()]
        return io.Schema(
            node_id="Distillery_Cache",
            display_name="Cache",
            category="distillery/caching",
            description="Skips evaluations of the network whose result can be foretold from those before. Works with every model.",
            search_aliases=["teacache", "easycache", "deepcache", "first block cache", "fbcache", "taylorseer", "cache", "speed"],
            not_idempotent=True,
            inputs=[
                MODEL,
                io.Float.Input(
                    "strength", default=0.5, min=0.0, max=1.0, step=0.05, display_mode=io.NumberDisplay.slider,
                    tooltip="How much to skip. Neutral: 0, nothing, bit for bit. 0.5: about twice as fast at little loss. 1: the most that is "
                    "sensible.",
                ),
                io.Combo.Input("preset", options=list(PRESETS), default="automatic", tooltip="\n".join(lines)),
                *MEMORY,
            ],
            outputs=outputs(OUTPUT),
        )  # fmt: skip

    @classmethod
    def execute(cls, model, strength, preset, offload=False, memory_limit=0.0) -> io.NodeOutput:
        chosen_preset = PRESETS[preset]
        place, remark = SITES[chosen_preset.site], ""
        site = place.make(**chosen_preset.site_knobs)
        if not site.fits(model.model.diffusion_model):
            site, remark = Prediction(), f"{place.title}: not in this network, so the whole prediction. "
        plan = Plan(
            POLICIES[chosen_preset.policy], chosen_preset.policy_knobs(strength),
            FORECASTS[chosen_preset.forecast], chosen_preset.forecast_knobs, site,
            remark=remark, offload=offload, memory_limit=memory_limit,
        )  # fmt: skip
        return reported(with_cache(model, plan))


class CacheParts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_CacheParts",
            display_name="Cache from Parts",
            category="distillery/caching",
            description="A cache put together by hand: when to skip, what stands in, and where in the network.",
            search_aliases=["cache", "teacache", "taylorseer", "deepcache", "skip steps"],
            not_idempotent=True,
            inputs=[
                MODEL,
                method_input(POLICIES, "policy"),
                method_input(FORECASTS, "forecast"),
                method_input(SITES, "site"),
                StepMask.Input("mask", optional=True, tooltip="From Step Mask, for the policy mask."),
                *MEMORY,
            ],
            outputs=outputs(OUTPUT),
        )

    @classmethod
    def execute(cls, model, policy, forecast, site, mask=None, offload=False, memory_limit=0.0) -> io.NodeOutput:
        if (policy["policy"] == "mask") != (mask is not None):
            raise ValueError(
                f"policy is {policy['policy']!r} and mask is {'not ' if mask is None else ''}connected: the policy mask needs a Step Mask, "
                "and no other takes one."
            )
        place, place_knobs = chosen(site, SITES, "site")
        given = {} if mask is None else {"mask": mask}
        plan = Plan(
            *chosen(policy, POLICIES, "policy"), *chosen(forecast, FORECASTS, "forecast"), place.make(**place_knobs), given,
            offload=offload, memory_limit=memory_limit,
        )  # fmt: skip
        return reported(with_cache(model, plan))


class MakeStepMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_StepMask",
            display_name="Step Mask",
            category="distillery/caching",
            description="Which steps of a run are evaluated, written down one by one, for Cache from Parts.",
            search_aliases=["skip steps", "cache", "mask"],
            inputs=[
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Steps of the run, as the sampler has them."),
                io.String.Input(
                    "skipped", default="3 5 7 9 11 13 15 17",
                    tooltip="Numbers of the steps to skip, counted from 0, with spaces or commas between. Neutral: empty.",
                ),
            ],
            outputs=[StepMask.Output("mask", display_name="mask", tooltip="For Cache from Parts, policy mask.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, steps, skipped) -> io.NodeOutput:
        words = skipped.replace(",", " ").split()
        wrong = [word for word in words if not (word.isascii() and word.isdigit() and int(word) < steps)]
        if wrong:
            raise ValueError(f"skipped has {wrong[0]!r}: give numbers from 0 to {steps - 1}, with spaces or commas between.")
        left_out = set(map(int, words))
        return io.NodeOutput(tuple(step not in left_out for step in range(steps)))


NODES = [Cache, CacheParts, MakeStepMask]
