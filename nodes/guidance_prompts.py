"""Nodes that guide by more than a positive and a negative prompt."""

from comfy_api.latest import io

from ..samplers.guidance.contrast import CONTRASTS, WEAKER
from .guidance import MODEL, outputs, reported
from .host_contrast import with_dropped_blocks, with_prompt, with_weak_model
from .inputs import chosen, knob_input, method_input


class PromptGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_PromptGuidance",
            display_name="Prompt Guidance",
            category="distillery/guidance",
            description="Guidance by a third prompt: perpendicular negatives, prompts with scales of their own, two negatives in turn. "
            "Chain several for more prompts.",
            search_aliases=["perp neg", "perpendicular", "multi condition", "composable", "interleaved", "negative prompt"],
            not_idempotent=True,
            inputs=[
                MODEL,
                io.Conditioning.Input("prompt", tooltip="The further prompt: see each method for what it is."),
                method_input(CONTRASTS),
            ],
            outputs=outputs("The same model, guided by this prompt too. CFG 1 is unaffected."),
        )

    @classmethod
    def execute(cls, model, prompt, method) -> io.NodeOutput:
        return reported(with_prompt(model, *chosen(method, CONTRASTS), prompt))


class Autoguidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        other = io.Model.Input("weak_model", tooltip="The same kind of model, less trained, smaller or pruned; its latents must be the same.")
        depth = "of the network's depth, 0 its beginning, 1 its end."
        places = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="Distillery_Autoguidance",
            display_name="Autoguidance",
            category="distillery/guidance",
            description="Guides away from what a weaker model makes of the same prompt: another model, or this one without some blocks.",
            search_aliases=["autoguidance", "weak model", "skip layer guidance", "slg", "cfg"],
            not_idempotent=True,
            inputs=[
                MODEL,
                io.DynamicCombo.Input(
                    "weak",
                    options=[
                        io.DynamicCombo.Option("without blocks", [
                            io.Float.Input("start", default=0.4, tooltip=f"Leave out the blocks from here {depth}", **places),
                            io.Float.Input("end", default=0.6, tooltip=f"Leave out the blocks up to here {depth}", **places),
                        ]),
                        io.DynamicCombo.Option("another model", [other]),
                    ],
                    tooltip="Who is the weaker model. without blocks: this one, some of its blocks left out; no more memory, and no "
                    "more time than a negative prompt. another model: one that you loaded; both are held in memory.",
                ),
                *map(knob_input, WEAKER.knobs),
            ],
            outputs=outputs("The same model, guided this way by the sampler's CFG scale. CFG 1 is unaffected."),
        )  # fmt: skip

    @classmethod
    def execute(cls, model, weak, share) -> io.NodeOutput:
        if weak["weak"] == "another model":
            return reported(with_weak_model(model, weak["weak_model"], {"share": share}))
        return reported(with_dropped_blocks(model, weak["start"], weak["end"], {"share": share}))


NODES = [PromptGuidance, Autoguidance]
