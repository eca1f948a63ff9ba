"""Models by reference: what a run's folder says of the model it needs, so that a program can load it without a graph."""

import comfy.sd
import torch

from . import host
from .demo import DEMO_MODELS, LoadDemoModel

LOADERS = {"diffusion model": comfy.sd.load_diffusion_model, "checkpoint": comfy.sd.load_checkpoint_guess_config}
OPTIONS = ("dtype", "fp8_optimizations")  # of load_diffusion_model, that a graph sets
DEMO = "demo"


def reference_of(model):
    """{"loader", "file", "shift", "options"} of a MODEL, for JSON. loader and file are None where core's loaders did not make it.

    options: what the diffusion model was loaded with, such as {"dtype": "float8_e4m3fn"}.
    """
    made = model.cached_patcher_init
    loader = next((name for name, function in LOADERS.items() if made and made[0] is function), None)
    shift = getattr(model.get_model_object("model_sampling"), "shift", None)
    given = dict(zip(("file", "options"), made[1])) if loader == "diffusion model" else {}
    options = {name: value for name, value in given.get("options", {}).items() if name in OPTIONS}
    if "dtype" in options:
        options["dtype"] = str(options["dtype"]).removeprefix("torch.")
    return {
        "loader": loader, "file": str(made[1][0]) if loader else None, "shift": None if shift is None else float(shift), "options": options,
    }  # fmt: skip


def load(reference):
    """(MODEL, CLIP or None) of what ``reference_of`` gave, without shift and options where they are the usual ones.

    loader "demo" takes the name of a bundled model as its file. ValueError for a reference that names no model.
    """
    loader, file, shift = (reference.get(name) for name in ("loader", "file", "shift"))
    if loader == DEMO:
        if file not in DEMO_MODELS:
            raise ValueError(f"model.file is {file!r}: of the bundled models there are {', '.join(DEMO_MODELS)}.")
        return LoadDemoModel.execute(file).args[:2]
    if loader not in LOADERS or not file:
        raise ValueError(
            f"model is {reference!r}, which names no model to load: give a loader, one of {DEMO}, {', '.join(LOADERS)}, and a file."
        )
    if loader == "checkpoint":
        model, clip = comfy.sd.load_checkpoint_guess_config(file, output_vae=False, output_clip=True)[:2]
    else:
        options = reference.get("options", {})
        dtype = {"dtype": getattr(torch, options["dtype"])} if "dtype" in options else {}
        model, clip = comfy.sd.load_diffusion_model(file, {**options, **dtype}), None
    if shift is not None and getattr(model.get_model_object("model_sampling"), "shift", shift) != shift:
        model = host.with_shift(model, shift)
    return model, clip
