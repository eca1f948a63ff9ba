"""Sweep: the same sampling once for each setting of a grid, measured, and the plot of error against cost.

ComfyUI runs it: Sweep expands into one clone of the varied branch per setting. What does not depend on a varied input is not
cloned, so it runs once. Clones form a chain, each waiting for the one before, so that no two are timed at once.
"""

import copy
import itertools
import json

import comfy.samplers
import comfy.utils
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from comfy_execution.graph_utils import is_link

from ..measure import pareto
from ..measure.pictures import check_pair
from ..measure.report import Report
from . import branch, host
from .display import draw_and_show

LIMIT = 64  # settings
DIFFERENT_KINDS = "reference and candidate are one LATENT and one IMAGE: connect two latents or two images."
Swept = io.Custom("DISTILLERY_SWEEP")


def watched(value, report):
    """A MODEL or GUIDER whose sampling runs are recorded in ``report``; results stay bit for bit the same."""
    if not isinstance(value, comfy.samplers.CFGGuider):
        return host.with_report(value, report)
    guider = copy.copy(value)
    guider.model_patcher = host.with_report(value.model_patcher, report)
    guider.model_options = guider.model_patcher.model_options
    return guider


class Run:
    """One run with one setting: its sampling is watched, and its result measured. A warm-up is checked and forgotten."""

    def __init__(self, sweep, point, settings, progress):
        self.sweep, self.point, self.settings, self.progress = sweep, point, settings, progress
        self.report = Report()

    def watch(self, value):
        return watched(value, self.report)

    def measure(self, value):
        if isinstance(value, dict) == self.sweep.pictures:
            raise ValueError(DIFFERENT_KINDS)
        result = tensor_of("candidate", value)
        check_pair(self.sweep.reference, result)
        totals = [run["totals"] for run in self.report.runs]
        evaluations, calls, seconds = (sum(total[key] for total in totals) for key in ("evaluations", "calls", "seconds"))
        if not evaluations:
            raise ValueError(
                "candidate: nothing sampled with the MODEL or GUIDER that was watched, so there is nothing to time. Connect the "
                "LATENT of a sampler, or the IMAGE decoded from it."
            )
        self.progress.update(1)
        if self.point is None:
            return
        if self.point == len(self.sweep.points):
            self.sweep.points.append(pareto.Point(self.settings, result, evaluations, calls))
        self.sweep.points[self.point].seconds.append(seconds)

    def finish(self, value):
        return self.sweep


def tensor_of(name, value):
    """The tensor of an IMAGE or LATENT."""
    tensor = value["samples"] if isinstance(value, dict) else value
    if tensor.is_nested:
        raise ValueError(f"{name} holds several latents in one, such as video with sound. Separate them and connect one.")
    return tensor


class SweepStep(io.ComfyNode):
    """What Sweep puts between the clones: it hands on a value, once those before are done."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_SweepStep",
            display_name="Sweep Step",
            category="distillery/reports",
            description="Part of Sweep, which adds these nodes itself while it runs. Not for use by hand.",
            is_dev_only=True,
            is_input_list=True,
            inputs=[
                io.Custom("DISTILLERY_SWEEP_STEP").Input("step", tooltip="What to do with the value: set by Sweep."),
                io.AnyType.Input("value", tooltip="A model to watch, or a result to measure."),
                io.AnyType.Input("after", optional=True, tooltip="What has to be done before."),
            ],
            outputs=[io.AnyType.Output(tooltip="The value, watched or measured.")],
        )

    @classmethod
    def execute(cls, step, value, after=None) -> io.NodeOutput:
        if len(value) != 1:
            raise ValueError(f"candidate: a node before it gives a list of {len(value)}. Sweep takes one result, or one batch.")
        return io.NodeOutput(step[0](value[0]))


class Sweep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Sweep",
            display_name="Sweep",
            category="distillery/reports",
            description="Runs the same sampling for every value of one or two inputs and measures what each costs and loses.",
            search_aliases=["pareto", "grid", "xy plot", "benchmark", "compare settings"],
            enable_expand=True,
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            inputs=[
                io.MultiType.Input(
                    "candidate", types=[io.Latent, io.Image], lazy=True, raw_link=True,
                    tooltip="What comes out of the branch to vary: the sampler's LATENT, or the IMAGE decoded from it.",
                ),
                io.MultiType.Input(
                    "reference", types=[io.Latent, io.Image],
                    tooltip="What errors are measured against: the same kind, seed and size, made without the shortcut.",
                ),
                io.String.Input(
                    "vary", default="KSampler.steps",
                    tooltip="The input to vary, as NODE.INPUT; NODE is the title or id of a node before candidate.",
                ),
                io.String.Input(
                    "values", default="4, 6, 8, 12, 16", multiline=True,
                    tooltip="Its values, with commas between; a value that holds commas in double quotes.",
                ),
                io.String.Input(
                    "vary_2", default="", optional=True,
                    tooltip="A second input to vary, all combinations. Neutral: empty.",
                ),
                io.String.Input(
                    "values_2", default="", optional=True, multiline=True, tooltip="Values of the second. Neutral: empty.",
                ),
                io.Int.Input(
                    "repeats", default=1, min=1, max=20, optional=True, advanced=True,
                    tooltip="Runs of every setting; seconds are their median. Neutral: 1.",
                ),
            ],
            outputs=[Swept.Output("sweep", display_name="sweep", tooltip="All results and what they cost: for Sweep Plot.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, candidate, reference, vary, values, vary_2="", values_2="", repeats=1) -> io.NodeOutput:
        prompt = cls.hidden.dynprompt
        if not is_link(candidate):
            raise ValueError("candidate is not connected: connect the LATENT or IMAGE of the branch to vary.")
        pictures = not isinstance(reference, dict)
        if branch.output_type(prompt, candidate) == ("LATENT" if pictures else "IMAGE"):
            raise ValueError(DIFFERENT_KINDS)
        axes, texts = [branch.find_input(prompt, candidate, "vary", vary)], [values]
        if vary_2.strip() or values_2.strip():
            axes.append(branch.find_input(prompt, candidate, "vary_2", vary_2))
            texts.append(values_2)
        if len(set(axes)) < len(axes):
            raise ValueError(f"vary_2 is {vary_2!r}, the input that vary names. Name another, or leave vary_2 and values_2 empty.")
        lists = [
            branch.read_values(name, text, *branch.declared(prompt, node_id)[entry])
            for name, text, (node_id, entry) in zip(("values", "values_2"), texts, axes)
        ]
        grid = list(itertools.product(*lists))
        if len(grid) > LIMIT:
            raise ValueError(
                f"values: {' x '.join(str(len(entries)) for entries in lists)} is {len(grid)} settings, and a sweep takes at most "
                f"{LIMIT}. List fewer."
            )
        sweep = pareto.Sweep(tensor_of("reference", reference), pictures)
        progress = comfy.utils.ProgressBar(1 + repeats * len(grid), node_id=cls.hidden.unique_id)
        settings = [dict(zip((vary.strip(), vary_2.strip()), entries)) for entries in grid]
        runs = [(Run(sweep, None, settings[0], progress), grid[0])]  # the first run of all also warms the machine up
        for _ in range(repeats):
            runs += [(Run(sweep, i, settings[i], progress), entries) for i, entries in enumerate(grid)]
        last, expanded = branch.expand(prompt, candidate, axes, runs)
        return io.NodeOutput(last, expand=expanded)


class SweepPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_SweepPlot",
            display_name="Sweep Plot",
            category="distillery/reports",
            description="Draws the error of a sweep against seconds and model evaluations, and marks what nothing beats.",
            search_aliases=["pareto", "grid", "xy plot", "contact sheet"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                Swept.Input("sweep", tooltip="From Sweep."),
                io.Combo.Input(
                    "error", options=[pareto.RELATIVE, *pareto.ERRORS], default=pareto.RELATIVE,
                    tooltip="How far a result is from the reference; 0 is equal. Relative error: of latents or images, the norm "
                    "of the difference over that of the reference. The others are for images. Changing it runs nothing again.",
                ),
            ],
            outputs=[
                io.Image.Output("plot", display_name="plot", tooltip="Error against seconds and evaluations. Needs matplotlib."),
                io.Image.Output("pictures", display_name="pictures", tooltip="Contact sheet of a sweep of images, labelled."),
                io.String.Output("text", display_name="text", tooltip="The table: one line a setting."),
                io.String.Output("json", display_name="json", tooltip="The same with every run's seconds, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, sweep, error) -> io.NodeOutput:
        rows = pareto.rows_of(sweep, error)
        text = pareto.table(rows, error)
        plot, shown = draw_and_show(cls, text, pareto.draw, rows, error)
        sheet = ExecutionBlocker("pictures: this sweep holds latents. Connect images to Sweep to get a contact sheet.")
        if sweep.pictures:
            sheet = pareto.contact_sheet(sweep, rows)
        return io.NodeOutput(plot, sheet, text, json.dumps({"error": error, "points": rows}), ui=shown)


NODES = [Sweep, SweepPlot, SweepStep]
