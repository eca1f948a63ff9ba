"""The models that come with the pack."""

from pathlib import Path

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
from comfy_api.latest import io
from safetensors import SafetensorError, safe_open

from . import host
from .shapes_clip import load_clip

MODELS = Path(__file__).resolve().parent.parent / "models"


def load_flow(path):
    """A flow model, sampled with the shift it was tuned for."""
    return host.with_shift(comfy.sd.load_diffusion_model(path), 3.0)


def load_unet(path):
    """An SD1-class UNet of any size: core's own loader knows only the published one."""
    weights = comfy.utils.load_torch_file(path)
    config = comfy.supported_models.SD15(comfy.model_detection.detect_unet_config(weights, ""))
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    kinds = config.supported_inference_dtypes
    dtype = comfy.model_management.unet_dtype(device, comfy.utils.calculate_parameters(weights), kinds)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, kinds), device=device)
    model = config.get_model(weights)
    patcher = comfy.model_patcher.CoreModelPatcher(model.to(offload), load_device=device, offload_device=offload)
    model.load_model_weights(weights, assign=patcher.is_dynamic())
    return patcher


DEMO_MODELS = {  # name: how its network is loaded; files of the network, the autoencoder and the text encoder
    "shapes-dit": (load_flow, "shapes-dit.safetensors", "shapes-vae16.safetensors", "shapes-text.safetensors"),
    "shapes-unet": (load_unet, "shapes-unet.safetensors", "shapes-vae4.safetensors", "shapes-text.safetensors"),
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
            "the pack again, or train it anew as docs/models.md says."
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
                    tooltip="For pictures of 128 x 128. shapes-dit: a small Flux, rectified flow, 16-channel latents. "
                    "shapes-unet: a small Stable Diffusion 1, eps-prediction, 4-channel latents.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="A model like any other."),
                io.Clip.Output(tooltip="Knows colours, shapes, sizes and places, such as: a large red star at the top."),
                io.Vae.Output(tooltip="Factor 8, in the TAESD format."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        load_network, *files = DEMO_MODELS[name]
        network, autoencoder, text_encoder = map(bundled, files)
        model = host.with_channel_check(load_network(network))
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(autoencoder))
        return io.NodeOutput(model, load_clip(text_encoder), vae)


NODES = [LoadDemoModel]
