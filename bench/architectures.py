"""Full-size networks of known architectures from ComfyUI's own classes, with random weights: for time and memory.

Each also has a tiny form of the same shape of network, which a CPU can run.
"""

from dataclasses import dataclass

import torch

from .hosted import Task, node_classes

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_checkpoint": False, "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
SD15 = UNET | {
    "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "context_dim": 768,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1, "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
SDXL = UNET | {
    "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "context_dim": 2048,
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10, "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
SD35_MEDIUM = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 24, "input_size": None, "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 384**2, "pos_embed_max_size": 384, "pos_embed_scaling_factor": None, "qk_norm": "rms",
    "x_block_self_attn_layers": list(range(13)),
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 3072, "num_heads": 24,
    "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "mlp_ratio": 4.0, "qkv_bias": True,
    "vec_in_dim": 768, "context_in_dim": 4096, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """kind is the class in comfy.supported_models; tiny replaces parts of network; side is the latent's, of usual pictures."""

    kind: str
    network: dict
    tiny: dict
    billions: float  # of parameters, as published; SD3.5's tables of positions count
    dtype: torch.dtype
    side: int
    tokens: int
    width: int  # of a token
    pooled: int
    cfg: float


ARCHITECTURES = {
    "SD1.5": Architecture(
        "SD15", SD15, {"model_channels": 32}, 0.86, torch.float16, 64, 77, 768, 0, 7.0,
    ),
    "SDXL": Architecture(
        "SDXL", SDXL,
        {"model_channels": 32, "transformer_depth": [0, 0, 1, 1, 1, 1], "transformer_depth_middle": 1,
         "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1]},
        2.57, torch.float16, 128, 77, 2048, 1280, 7.0,
    ),
    "SD3.5-medium": Architecture(
        "SD3", SD35_MEDIUM,
        {"depth": 2, "x_block_self_attn_layers": [0], "num_patches": 32**2, "pos_embed_max_size": 32,
         "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}},
        2.5, torch.bfloat16, 128, 154, 4096, 2048, 4.5,
    ),
    "Flux": Architecture(
        "Flux", FLUX, {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1},
        11.9, torch.bfloat16, 128, 512, 4096, 768, 1.0,
    ),
}  # fmt: skip


def build(name, device, tiny=False):
    """Core's model object (BaseModel) on a device, weights as torch left them; on "meta" it takes no memory."""
    node_classes()
    import comfy.supported_models

    architecture = ARCHITECTURES[name]
    network = architecture.network | (architecture.tiny if tiny else {})
    config = getattr(comfy.supported_models, architecture.kind)(network)
    config.set_inference_dtype(torch.float32 if tiny else architecture.dtype, None)
    with torch.inference_mode(False):
        return config.get_model({}, "", device=torch.device(device))


def as_task(name, device, tiny=False):
    """A Task on the architecture, filled with noise small enough that nothing overflows; one picture of its usual size."""
    architecture, model = ARCHITECTURES[name], build(name, device, tiny)
    import comfy.model_patcher

    device = torch.device(device)
    weights = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in [*model.diffusion_model.parameters(), *model.diffusion_model.buffers()]:
            if parameter.is_floating_point():
                parameter.normal_(std=0.02, generator=weights)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)
    inputs = torch.Generator().manual_seed(0)
    side = 16 if tiny else architecture.side
    noise = torch.randn(1, model.latent_format.latent_channels, side, side, generator=inputs)

    def condition():
        text = torch.randn(1, architecture.tokens, architecture.width, generator=inputs)
        pooled = {"pooled_output": torch.randn(1, architecture.pooled, generator=inputs)} if architecture.pooled else {}
        return [[text, pooled]]

    return Task(patcher, condition(), condition(), architecture.cfg, noise)
