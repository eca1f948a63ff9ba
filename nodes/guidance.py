"""Nodes that change a MODEL's guidance."""

from comfy_api.latest import io

from ..samplers.guidance import RULES
from . import host
from .inputs import chosen, method_input


class ProjectedGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_ProjectedGuidance",
            display_name="Projected Guidance (APG)",
            category="distillery/guidance",
            description="High CFG without burnt colours. Works with KSampler; the CFG scale keeps its usual meaning.",
            search_aliases=["apg", "adaptive projected guidance", "cfg", "saturation"],
            inputs=[
                io.Model.Input("model", tooltip="Any model that is sampled with a negative prompt."),
                method_input(RULES),
            ],
            outputs=[io.Model.Output(tooltip="The same model with this guidance. CFG 1 is unaffected.")],
        )

    @classmethod
    def execute(cls, model, method) -> io.NodeOutput:
        return io.NodeOutput(host.with_guidance(model, *chosen(method, RULES)))


NODES = [ProjectedGuidance]
