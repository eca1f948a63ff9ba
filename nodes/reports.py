"""Nodes that say what sampling did."""

import json

from comfy_api.latest import io

from ..measure.report import Report as Runs
from ..measure.report import summary
from . import host

Report = io.Custom("DISTILLERY_REPORT")


class Trace(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Trace",
            display_name="Trace",
            category="distillery/reports",
            description="Counts model evaluations and seconds of every run of this model, and changes nothing else.",
            search_aliases=["report", "evaluations", "nfe", "timing"],
            not_idempotent=True,  # else ComfyUI makes one node, and one report, of two Traces on the same model
            inputs=[io.Model.Input("model", tooltip="The model to watch, as the sampler would get it.")],
            outputs=[
                io.Model.Output(tooltip="The same model, watched: results stay bit for bit the same."),
                Report.Output("report", display_name="report", tooltip="What its runs did: for Show Report."),
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        report = Runs()
        return io.NodeOutput(host.with_report(model, report), report)


class ShowReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_ShowReport",
            display_name="Show Report",
            category="distillery/reports",
            description="What a traced model did, as text and JSON. Connect Preview as Text to read it here.",
            search_aliases=["report", "evaluations", "nfe", "timing"],
            is_output_node=True,
            inputs=[
                Report.Input("report", tooltip="From Trace."),
                io.Latent.Input("latent", tooltip="The latent that came out of the sampler, so that the report waits for it."),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The totals, one line per run."),
                io.String.Output("json", display_name="json", tooltip="Every run with one row per step, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, report, latent) -> io.NodeOutput:
        text = summary(report.runs)
        return io.NodeOutput(text, json.dumps(report.runs), ui={"text": [text], "report": report.runs})


NODES = [Trace, ShowReport]
