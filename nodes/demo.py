"""The models that come with the pack."""

from pathlib import Path

import comfy.sd
import comfy.utils
from comfy_api.latest import io
from safetensors import SafetensorError, safe_open

from . import host
from .shapes_clip import load_clip

MODELS = Path(__file__).resolve().parent.parent / "models"
DEMO_MODELS = {  # name: files of the network, the autoencoder and the text encoder, and the shift it is sampled with
    "shapes-dit": ("shapes-dit.safetensors", "shapes-vae16.safetensors", "shapes-text.safetensors", 3.0),
}


def bundled(file):
    """The path of a bundled file, after a look at whether it is all there."""
    path = MODELS / file
    try:
        with safe_open(path, "pt"):
            return str(path)
    except (OSError, SafetensorError) as error:
        state = "damaged" if path.is_file() else "missing"
        raise ValueError(
            f"The bundled file {path} is {state}. Bring it back with `git checkout models` in the pack's folder, install "
            "the pack again, or train it anew as models/README.md says."
        ) from error


class LoadDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_LoadDemoModel",
            display_name="Load Demo Model",
            category="distillery/models",
            description="A small text-to-image model that comes with the pack: coloured shapes at 128 x 128.",
            search_aliases=["shapes", "checkpoint", "example model"],
            inputs=[
                io.Combo.Input(
                    "name", options=list(DEMO_MODELS),
                    tooltip="shapes-dit: a small Flux, rectified flow, 16-channel latents. For pictures of 128 x 128.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="A model like any other."),
                io.Clip.Output(tooltip="Knows the words of models/README.md, such as: a large red star at the top."),
                io.Vae.Output(tooltip="Factor 8, in the TAESD format."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        *files, shift = DEMO_MODELS[name]
        network, autoencoder, text_encoder = map(bundled, files)
        model = host.with_shift(host.with_channel_check(comfy.sd.load_diffusion_model(network)), shift)
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(autoencoder))
        return io.NodeOutput(model, load_clip(text_encoder), vae)


NODES = [LoadDemoModel]
