"""A node that makes or edits SIGMAS by hand."""

import re

import torch
from comfy_api.latest import io

from ..samplers.core import check_sigmas
from ..samplers.schedules import points as curve
from ..samplers.schedules.timesteps import levels_at
from . import host

HOW = {
    "none": "These levels exactly, one step from each to the next.",
    "linear": "Straight lines in sigma.",
    "log_linear": "Straight lines in log sigma, for levels that span decades.",
    "monotone_cubic": "A smooth curve in sigma that never overshoots.",
}


class SigmaEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        steps = io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Number of steps, before highest and lowest cut.")
        options = [io.DynamicCombo.Option(name, [] if name == "none" else [steps]) for name in HOW]
        return io.Schema(
            node_id="Distillery_SigmaEditor",
            display_name="Sigma Editor",
            category="distillery/schedules",
            description="Noise levels written by hand, exact or as a curve, and edits of a scheduler's. See them in Sigma Plot.",
            search_aliases=[
                "manual sigmas", "custom sigmas", "timestep list", "timesteps", "turbo", "lcm", "split sigmas", "clip sigmas",
                "interpolate sigmas",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled: what percents and timesteps mean, and what is allowed."),
                io.String.Input(
                    "points", default="0, 0.25, 0.5, 0.75, 1", multiline=True,
                    tooltip="Numbers separated by commas or spaces, noisiest first. Empty: only the levels of sigmas.",
                ),
                io.Combo.Input(
                    "unit", options=["percent", "sigma", "timestep"],
                    tooltip="What points are. percent: 0 (noise) to 1 (clean), rising, as start_percent elsewhere. sigma: noise "
                    "levels, falling. timestep: the model's, falling from 999, on flow models from 1000; a step to sigma 0 follows.",
                ),
                io.DynamicCombo.Input(
                    "interpolation", options=options, tooltip="\n".join(f"{name}: {line}" for name, line in HOW.items()),
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="A schedule to edit; points are inserted into it. Neutral: none.",
                ),
                io.Float.Input(
                    "shift", default=1.0, min=0.01, max=100.0, step=0.01, optional=True, advanced=True,
                    tooltip="Noise over signal times this: on flow models the shift of a shift node, on others sigma times "
                    "this. Neutral: 1.",
                ),
                io.Float.Input(
                    "highest", default=0.0, min=0.0, max=100000.0, step=0.001, optional=True, advanced=True,
                    tooltip="Begin at this sigma, leaving out the levels above. Neutral: 0, no limit.",
                ),
                io.Float.Input(
                    "lowest", default=0.0, min=0.0, max=100000.0, step=0.001, optional=True, advanced=True,
                    tooltip="End at this sigma, leaving out the levels below. Neutral: 0, no limit.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="Falling noise levels. They end at 0 only where points or sigmas do, and after timesteps.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, points, unit, interpolation, sigmas=None, shift=1.0, highest=0.0, lowest=0.0
    ) -> io.NodeOutput:
        sampling = model.get_model_object("model_sampling")
        path = host.path_of(sampling)
        levels = torch.zeros(0, dtype=torch.float64)
        if sigmas is not None:
            check_sigmas(sigmas)
            levels = sigmas.cpu().double()
            check_flow_range("sigmas", levels, path)
        given = numbers(points)
        if not len(given) and not len(levels):
            raise ValueError("points is empty and sigmas is not connected: write numbers, '1, 0.5, 0' say, or connect SIGMAS.")
        check_order(given, unit)
        written = in_sigma(given, unit, sampling, path)
        check_flow_range("points", written, path)
        if unit == "timestep" and sigmas is None:  # no timestep is clean: a list of them means one step more, to 0
            written = curve.merged(written, torch.zeros(1, dtype=torch.float64))
        levels = curve.merged(levels, written)
        if interpolation["interpolation"] != "none":
            levels = curve.through(levels, interpolation["steps"], interpolation["interpolation"])
        levels = curve.shifted(levels, shift, path)
        if highest or lowest:
            levels = curve.clipped(levels, highest or float("inf"), lowest)
        levels = levels.float()
        check_sigmas(levels)
        return io.NodeOutput(levels)


def numbers(text):
    """float64 list of what is written, (n,). ValueError at the first word that is no finite number of 0 or more."""
    words = [word for word in re.split(r"[\s,;\[\]()]+", text) if word]
    for i, word in enumerate(words):
        try:
            allowed = 0 <= float(word) < float("inf")
        except ValueError:
            allowed = False
        if not allowed:
            raise ValueError(f"points[{i}] is {word}: write numbers of 0 or more, separated by commas.")
    return torch.tensor([float(word) for word in words], dtype=torch.float64)


def check_order(given, unit):
    rising = unit == "percent"
    for i, step in enumerate(given.diff().tolist()):
        if step == 0 or (step > 0) != rising:
            raise ValueError(
                f"points[{i}] is {given[i]:g} and points[{i + 1}] is {given[i + 1]:g}: write the noisiest first and no value "
                f"twice, so that {unit} {'rises' if rising else 'falls'}."
            )


def in_sigma(given, unit, sampling, path):
    """The noise levels that points of this unit mean to the model."""
    if unit == "sigma":
        return given
    if unit == "percent":
        return torch.tensor([at_percent(i, share, sampling) for i, share in enumerate(given.tolist())], dtype=torch.float64)
    table = host.timestep_table(sampling)
    if table is None:
        raise ValueError(
            "unit is timestep: this model has none, as it was trained on continuous noise levels. Set unit to sigma or percent."
        )
    return levels_at(given, path, table)


def at_percent(i, share, sampling):
    if share > 1:
        raise ValueError(f"points[{i}] is {share:g}: percent goes from 0 (noise) to 1 (clean), as start_percent elsewhere.")
    return float(sampling.percent_to_sigma(share)) if share > 0 else float(sampling.sigma_max)


def check_flow_range(name, levels, path):
    if path.is_flow and len(levels) and levels[0] > 1:
        raise ValueError(
            f"{name}[0] is {levels[0]:g}: on a flow model a noise level is at most 1. Use levels from 1 to 0, or another unit."
        )


NODES = [SigmaEditor]
