"""The node that compares what two ways of sampling made."""

import json

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..measure import side_by_side
from ..measure.pictures import compare, compare_latents
from .display import draw_and_show


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        either = [io.Image, io.Latent]
        return io.Schema(
            node_id="Distillery_Compare",
            display_name="Compare",
            category="distillery/reports",
            description="Images or latents beside their reference: a difference map, and the distance in numbers.",
            search_aliases=["psnr", "ssim", "lpips", "difference", "side by side", "quality", "fidelity"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.MultiType.Input("reference", types=either, tooltip="What should have come out: images or latents."),
                io.MultiType.Input(
                    "candidate", types=either,
                    tooltip="What came out: as many, of the same size, of the same kind; item by item.",
                ),
                io.Int.Input(
                    "rows", default=4, min=1, max=64, advanced=True,
                    tooltip="How many items of a batch, or frames of a video, to draw at most, evenly spread. All are measured.",
                ),
                io.Float.Input(
                    "gain", default=0.0, min=0.0, max=1000.0, step=0.5, advanced=True,
                    tooltip="How much brighter than it is to draw the difference. Neutral: 1. 0: the largest is brightest.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="image",
                    tooltip="Reference, candidate, and difference with its scale, one row per item. Needs matplotlib.",
                ),
                io.String.Output("text", display_name="text", tooltip="The numbers, one line each."),
                io.String.Output("json", display_name="json", tooltip="The numbers, their mean and every item, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, reference, candidate, rows, gain) -> io.NodeOutput:
        if type(reference) is not type(candidate):
            raise ValueError(
                f"reference is {kind(reference)} and candidate {kind(candidate)}: give two images or two latents. VAE Decode "
                "makes images of latents."
            )
        if isinstance(reference, torch.Tensor):
            numbers = compare(reference, candidate, progress(len(reference)))
            views = side_by_side.of_images(reference, candidate)
        else:
            reference, candidate = samples("reference", reference), samples("candidate", candidate)
            numbers, views = compare_latents(reference, candidate), side_by_side.of_latents(reference, candidate)
        text = in_words(numbers)
        image, shown = draw_and_show(cls, text, side_by_side.draw, views, rows, gain, comparison=[numbers])
        return io.NodeOutput(image, text, json.dumps(numbers), ui=shown)


def progress(count):
    """A function to call after each of ``count`` things: it moves ComfyUI's progress bar, and ends there if the user says so."""
    bar = comfy.utils.ProgressBar(count)

    def done():
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return done


def kind(value):
    return "images" if isinstance(value, torch.Tensor) else "a latent"


def samples(name, latent):
    """The tensor of a LATENT. ValueError for a pack of several, as of video with sound."""
    if latent["samples"].is_nested:
        raise ValueError(f"{name} is a pack of several latents: separate them, and compare one kind at a time.")
    return latent["samples"]


def in_words(numbers):
    """One line per number: its mean, and its range where there are several items."""
    lines = []
    for name, found in numbers.items():
        items = found["items"]
        span = f" ({min(items):.4g} to {max(items):.4g})" if len(items) > 1 else ""
        lines.append(f"{name.replace('_', ' ')} {found['mean']:.4g}{span}")
    return "\n".join(lines)


NODES = [Compare]
