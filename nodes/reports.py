"""Nodes that say what sampling did."""

import json
import os

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..distill.checkpoints import whole_file
from ..measure import timeline
from ..measure.report import Report as Runs
from ..measure.report import summary, to_csv
from . import host
from .display import draw_and_show, show

Report = io.Custom("DISTILLERY_REPORT")
FORMATS = {"nothing": (), "JSON": ("json",), "CSV": ("csv",), "JSON and CSV": ("json", "csv")}


class Trace(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Trace",
            display_name="Trace",
            category="distillery/reports",
            description="Counts model evaluations, seconds and peak memory of every run of this model, and changes nothing.",
            search_aliases=["report", "evaluations", "nfe", "timing", "memory", "profile"],
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
            description="Shows what a traced model did, step by step, as a picture, text and JSON; can save it as a file.",
            search_aliases=["report", "evaluations", "nfe", "timing", "timeline", "csv"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                Report.Input("report", tooltip="From Trace."),
                io.Latent.Input("latent", tooltip="The latent that came out of the sampler, so that the report waits for it."),
                io.Combo.Input(
                    "save", options=list(FORMATS), default="nothing", optional=True, advanced=True,
                    tooltip="What to save in ComfyUI's output folder: JSON with all rows, CSV with one line a step. "
                    "Neutral: nothing.",
                ),
                io.String.Input(
                    "filename_prefix", default="distillery/report", optional=True, advanced=True,
                    tooltip="Where in the output folder to save, and the beginning of the name, as in Save Image.",
                ),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The totals, one line per run."),
                io.String.Output("json", display_name="json", tooltip="Every run with one row per step, as JSON."),
                io.Image.Output("image", display_name="image", tooltip="The timeline. Needs matplotlib."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, report, latent, save="nothing", filename_prefix="distillery/report") -> io.NodeOutput:
        texts = {"json": json.dumps(report.runs), "csv": to_csv(report.runs)}
        saved = save_texts(filename_prefix, {ending: texts[ending] for ending in FORMATS[save]})
        text = summary(report.runs)
        if any(run["steps"] for run in report.runs):
            image, shown = draw_and_show(cls, text, timeline.draw, report.runs, report=report.runs, files=saved)
        else:
            image, shown = ExecutionBlocker(text), show(cls, text)
        return io.NodeOutput(text, texts["json"], image, ui=shown)


def save_texts(filename_prefix, texts):
    """Save {ending: text} beside each other in ComfyUI's output folder, under the next free number of this prefix.

    Each file appears whole or not at all. Returns what the history lists: dicts of filename, subfolder and type. ValueError
    for a prefix that leads out of the output folder, OSError where the disk is full.
    """
    if not texts:
        return []
    output = folder_paths.get_output_directory()
    inside, name = os.path.split(os.path.normpath(filename_prefix))
    if name in (".", "..") or not folder_paths.is_within_directory(output, os.path.join(output, inside)):
        raise ValueError(
            f"filename_prefix is {filename_prefix!r}, which names no file inside ComfyUI's output folder: give a relative one, "
            "such as distillery/report."
        )
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
    saved = []
    for ending, text in texts.items():
        file = f"{name}_{number:05}_.{ending}"
        whole_file(os.path.join(folder, file), lambda part, text=text: part.write_text(text, "utf-8", newline=""))
        saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
    return saved


NODES = [Trace, ShowReport]
