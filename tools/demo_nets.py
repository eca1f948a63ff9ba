"""The networks of the bundled models, built from the host's own classes so that its loaders read the trained files."""

import math

import torch

from .inprocess import import_comfyui
from .shapes import vocabulary

FLUX = {  # the schnell layout at a fortieth of its width: what core detects from the file must equal this
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 128, "num_heads": 1, "depth": 4,
    "depth_single_blocks": 8, "axes_dim": [16, 56, 56], "theta": 10000, "mlp_ratio": 4.0, "qkv_bias": True,
    "vec_in_dim": 128, "context_in_dim": 128, "guidance_embed": False, "txt_ids_dims": [],
}  # fmt: skip

UNET = {  # Stable Diffusion 1 at a fifth of its width, with three levels instead of four
    "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 1], "transformer_depth_output": [1, 1, 1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "context_dim": 128, "num_heads": 8,
    "num_head_channels": -1, "image_size": 32, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip


def import_networks(device):
    """Import ComfyUI with its arithmetic in the form that gradients can pass through."""
    import_comfyui(cpu=device == "cpu")
    import comfy.model_management

    comfy.model_management.in_training = True


def training_ops():
    """Core's layers, with a LayerNorm that keeps its own copy: blocks add to their input in place, after it was saved."""
    import comfy.ops

    class TrainingOps(comfy.ops.disable_weight_init):
        class LayerNorm(comfy.ops.disable_weight_init.LayerNorm):
            def forward(self, x):
                return super().forward(x.clone())

    return TrainingOps


def initialise(network, zero=()):
    """Fill the host's uninitialised layers; those whose name contains a word of ``zero`` start at nothing."""
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_uniform_(module.weight, a=math.sqrt(2))
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.5 / math.sqrt(module.embedding_dim))
        elif getattr(module, "weight", None) is not None:
            torch.nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            torch.nn.init.zeros_(module.bias)
        if getattr(module, "weight", None) is not None and any(word in name for word in zero):
            torch.nn.init.zeros_(module.weight)
    return network


def autoencoder(channels=16):
    """A TAESD: pictures (B, 3, 8H, 8W) in [0, 1] to latents (B, channels, H, W) and back."""
    from comfy.taesd.taesd import TAESD

    return initialise(TAESD(latent_channels=channels), zero=("conv.4",))


def transformer():
    from comfy.ldm.flux.model import Flux

    network = Flux(dtype=torch.float32, device="cpu", operations=training_ops(), **FLUX)
    initialise(network, zero=("mod.lin", "modulation.lin", "adaLN_modulation", "final_layer.linear"))
    for block in network.double_blocks:
        for attention in (block.img_attn, block.txt_attn):  # so that attention depends on place from the first step:
            torch.nn.init.normal_(attention.qkv.bias[: 2 * FLUX["hidden_size"]])  # Flux has no other sense of it
    return network


def unet():
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    network = UNetModel(dtype=torch.float32, device="cpu", operations=training_ops(), **UNET)
    return initialise(network, zero=("out_layers.3", "proj_out", "out.2"))


def text_encoder():
    """The encoder (tokens to states and pooled state) and the tokenizer (caption to a list of LENGTH tokens)."""
    from comfyui_distillery.nodes.shapes_clip import encoder_for, tokenizer_for

    words = vocabulary()
    options = {"custom_operations": training_ops()}
    encoder = initialise(encoder_for(words)("cpu", torch.float32, options).shapes).requires_grad_(True)
    tokenizer = tokenizer_for(words)(None, {})
    return encoder, lambda text: [token for token, _ in tokenizer.tokenize_with_weights(text)["shapes"][0]]
