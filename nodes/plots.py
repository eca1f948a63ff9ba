"""Nodes that draw what is about to happen."""

import torch
from comfy_api.latest import io

from ..measure import sigma_plot
from .display import draw_and_show

MOST = 8


class SigmaPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        one = io.Sigmas.Input("sigmas", tooltip="Noise levels, as a scheduler makes them.")
        return io.Schema(
            node_id="Distillery_SigmaPlot",
            display_name="Sigma Plot",
            category="distillery/reports",
            description="Draws one or several SIGMAS against the step; with a MODEL also the percent and timestep they mean.",
            search_aliases=["schedule", "scheduler", "noise levels", "timesteps", "graph", "curve"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Autogrow.Input(
                    "sigmas", template=io.Autogrow.TemplatePrefix(one, prefix="sigmas_", min=1, max=MOST),
                    tooltip="One or several SIGMAS: a new slot appears for the next.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Whose percent (as in start_percent) and timestep to draw. Neutral: none."
                ),
                io.String.Input(
                    "names", default="", optional=True, advanced=True,
                    tooltip="Names for the legend, separated by commas. Neutral: empty, then they are numbered.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The plot. Needs matplotlib."),
                io.String.Output("text", display_name="text", tooltip="A table with one line per step."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, sigmas, model=None, names="") -> io.NodeOutput:
        sampling = None if model is None else model.get_model_object("model_sampling")
        schedules = {}
        for name, (slot, levels) in zip(legend(names, len(sigmas)), sigmas.items()):
            check(slot, levels)
            schedules[name] = columns(levels.float().cpu(), sampling)
        image, shown = draw_and_show(cls, sigma_plot.summary(schedules), sigma_plot.draw, schedules)
        return io.NodeOutput(image, sigma_plot.table(schedules), ui=shown)


def legend(names, count):
    given = [name.strip() for name in names.split(",")] if names.strip() else []
    if len(given) not in (0, count) or len(set(given)) < len(given) or not all(given):
        raise ValueError(f"names is {names!r}: give {count} different names separated by commas, one per SIGMAS, or none.")
    return given or [f"sigmas_{number}" for number in range(count)]


def check(slot, levels):
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"{slot} has the shape {tuple(levels.shape)}, and a schedule is a row of two or more noise levels: with denoise 0 "
            "a scheduler gives none."
        )
    if not torch.isfinite(levels).all():
        raise ValueError(f"{slot} holds NaN or infinite noise levels: look at the node that made it.")


def columns(levels, sampling):
    """What to draw of these levels: themselves, and what the model's ``model_sampling`` takes them for."""
    shown = {"sigma": levels.tolist()}
    if sampling is not None:
        shown["percent"] = sigma_plot.percents(shown["sigma"], lambda percent: float(sampling.percent_to_sigma(percent)))
        shown["timestep"] = sampling.timestep(levels).tolist()
    return shown


NODES = [SigmaPlot]
