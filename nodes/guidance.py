"""Nodes that change a MODEL's guidance, and the same as a GUIDER."""

import comfy.samplers
from comfy_api.latest import io

from ..measure.report import Report as Runs
from ..samplers.guidance import RULES
from ..samplers.guidance.skipping import SKIPS
from ..samplers.guidance.smart import SAVINGS
from . import host
from .host_guidance import check_scale, with_rule, with_smart
from .inputs import chosen, family, method_input
from .reports import Report

MODEL = io.Model.Input("model", tooltip="Any model that is sampled with a negative prompt, with or without other guidance nodes.")
REPORT = Report.Output("report", display_name="report", tooltip="Steps, evaluations and what was decided: for Show Report.")


def outputs(tooltip):
    return [io.Model.Output(tooltip=tooltip), REPORT]


def reported(model):
    """What such a node puts out: the model, watched by a report of its own."""
    report = Runs()
    return io.NodeOutput(host.with_report(model, report), report)


class SkipGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_SkipGuidance",
            display_name="Adaptive Guidance",
            category="distillery/guidance",
            description="Fewer evaluations of the negative prompt: adaptive, in an interval, every n-th step, or extrapolated. Works "
            "with KSampler and any other sampler.",
            search_aliases=["adaptive guidance", "cfg", "skip uncond", "linear ag", "fastercache", "cfg interval", "speed"],
            not_idempotent=True,
            inputs=[MODEL, method_input(SKIPS)],
            outputs=outputs("The same model with fewer unconditional evaluations. Where CFG 1 has none, nothing changes."),
        )

    @classmethod
    def execute(cls, model, method) -> io.NodeOutput:
        return reported(with_rule(model, *chosen(method, SKIPS)))


class ProjectedGuidance(io.ComfyNode):
    METHODS = family(RULES, "projected")

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_ProjectedGuidance",
            display_name="Projected Guidance (APG)",
            category="distillery/guidance",
            description="Better directions of guidance: APG, CFG-Zero*, TCFG. Works with KSampler; the CFG scale keeps its usual meaning.",
            search_aliases=["apg", "adaptive projected guidance", "cfg", "saturation", "cfg zero star", "tcfg"],
            not_idempotent=True,
            inputs=[MODEL, method_input(cls.METHODS)],
            outputs=outputs("The same model with this guidance. CFG 1 is unaffected."),
        )

    @classmethod
    def execute(cls, model, method) -> io.NodeOutput:
        return reported(with_rule(model, *chosen(method, cls.METHODS)))


class GuidanceStrength(io.ComfyNode):
    METHODS = family(RULES, "strength")

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_GuidanceStrength",
            display_name="Guidance Strength",
            category="distillery/guidance",
            description="How strong guidance is, by time, frequency or size, and what becomes of values out of range.",
            search_aliases=["cfg", "rescale", "dynamic threshold", "cfg schedule", "frequency decoupled", "mambo", "burn", "saturation"],
            not_idempotent=True,
            inputs=[MODEL, method_input(cls.METHODS)],
            outputs=outputs("The same model with this guidance. CFG 1 is unaffected."),
        )

    @classmethod
    def execute(cls, model, method) -> io.NodeOutput:
        return reported(with_rule(model, *chosen(method, cls.METHODS)))


class SmartGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_SmartGuidance",
            display_name="Smart Guidance",
            category="distillery/guidance",
            description="Guidance to try first: give the scale, the rest was chosen by measurement. Fewer evaluations, and no burn at "
            "high scales. Works with KSampler.",
            search_aliases=["smart guidance", "cfg", "adaptive guidance", "auto", "speed"],
            not_idempotent=True,
            inputs=[
                MODEL,
                io.Float.Input(
                    "scale", default=4.0, min=1.0, max=100.0, step=0.1, round=0.01,
                    tooltip="CFG scale. It takes the place of the sampler's own, which is then not used. 1 is no guidance.",
                ),
                io.Combo.Input(
                    "saving", options=list(SAVINGS), default="balanced",
                    tooltip="How many of all model evaluations to save: "
                    + ", ".join(f"{word} {share:.0%} or more" for word, share in SAVINGS.items() if share)
                    + ". nothing: every step is guided in full.",
                ),
            ],
            outputs=outputs("The same model, guided at this scale by what measured best for its kind and the number of steps."),
        )  # fmt: skip

    @classmethod
    def execute(cls, model, scale, saving) -> io.NodeOutput:
        return reported(with_smart(model, scale, saving))


class Guider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Guider",
            display_name="Guider",
            category="distillery/guidance",
            description="CFG with one rule that skips and one that shapes, as a GUIDER for SamplerCustomAdvanced.",
            search_aliases=["cfg guider", "adaptive guider", "adaptive guidance", "apg"],
            not_idempotent=True,
            inputs=[
                MODEL,
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", tooltip="What to keep away from."),
                io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Scale of guidance. 1 is none."),
                method_input(SKIPS, "skipping", none="Every step is guided."),
                method_input(RULES, "shaping", none="Plain CFG."),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced."), REPORT],
        )

    @classmethod
    def execute(cls, model, positive, negative, cfg, skipping, shaping) -> io.NodeOutput:
        if skipping["skipping"] != "none":
            rule, settings = chosen(skipping, SKIPS, "skipping")
            check_scale("cfg", cfg, rule)
            model = with_rule(model, rule, settings)
        if shaping["shaping"] != "none":
            model = with_rule(model, *chosen(shaping, RULES, "shaping"))
        model, report = reported(model).args
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider, report)


NODES = [SmartGuidance, SkipGuidance, ProjectedGuidance, GuidanceStrength, Guider]
