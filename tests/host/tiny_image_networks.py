"""name: (network, settings of its constructor, inputs for a function that draws noise of a shape). Image models."""

import torch

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "use_spatial_transformer": True, "context_dim": 32, "num_heads": 2, "legacy": False,
}  # fmt: skip
SDXL = {
    **UNET, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2], "transformer_depth_middle": 2,
    "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 32,
}  # fmt: skip
SD3 = {
    "input_size": None, "in_channels": 16, "depth": 1, "num_blocks": 3, "adm_in_channels": 32, "pos_embed_max_size": 8,
    "num_patches": 64, "qk_norm": "rms", "x_block_self_attn_layers": [0],
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
}  # fmt: skip
FLUX = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "hidden_size": 32, "num_heads": 1, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "mlp_ratio": 2.0, "qkv_bias": True,
    "vec_in_dim": 32, "context_in_dim": 32, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = {
    **FLUX, "patch_size": 1, "axes_dim": [8, 8, 8, 8], "txt_ids_dims": [3], "vec_in_dim": None, "qkv_bias": False,
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip
CHROMA = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 32, "num_heads": 1, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "mlp_ratio": 2.0, "qkv_bias": True,
    "context_in_dim": 32, "txt_ids_dims": [], "vec_in_dim": None, "in_dim": 64, "out_dim": 32, "hidden_dim": 32,
    "n_layers": 1,
}  # fmt: skip
RADIANCE = {
    **CHROMA, "in_channels": 3, "out_channels": 3, "patch_size": 4, "nerf_hidden_size": 16, "nerf_mlp_ratio": 2,
    "nerf_depth": 1, "nerf_max_freqs": 2, "nerf_tile_size": 0, "nerf_final_head_type": "conv", "nerf_embedder_dtype": None,
    "use_x0": False, "use_sequential_txt_ids": False,
}  # fmt: skip
QWEN = {
    "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 1, "joint_attention_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
LUMINA = {
    "in_channels": 16, "dim": 64, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "multiple_of": 32,
    "qk_norm": True, "cap_feat_dim": 32, "axes_dims": (8, 12, 12), "axes_lens": (64, 64, 64),
}  # fmt: skip
ZIMAGE = {
    **LUMINA, "dim": 256, "n_heads": 8, "n_kv_heads": 8, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
ZIMAGE_PIXEL = {**ZIMAGE, "in_channels": 3, "patch_size": 4, "decoder_hidden_size": 32, "decoder_num_res_blocks": 1}
AURA = {"dim": 32, "n_layers": 4, "n_double_layers": 2, "n_heads": 2, "global_conddim": 32, "cond_seq_dim": 32, "max_seq": 64}
PIXART = {
    "hidden_size": 32, "depth": 3, "num_heads": 2, "caption_channels": 32, "micro_condition": False, "pe_interpolation": 1,
}  # fmt: skip
HIDREAM = {
    "patch_size": 2, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32,
    "num_attention_heads": 1, "caption_channels": [32, 32], "text_emb_dim": 32, "num_routed_experts": 2,
    "num_activated_experts": 1, "axes_dims_rope": (16, 8, 8), "llama_layers": [0, 1, 2, 2],
}  # fmt: skip
KREA = {
    "features": 64, "txtdim": 32, "heads": 2, "kvheads": 1, "multiplier": 2, "layers": 3, "txtlayers": 2, "txtheads": 1,
    "txtkvheads": 1,
}  # fmt: skip
ERNIE = {
    "hidden_size": 64, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 64, "in_channels": 8,
    "out_channels": 8, "text_in_dim": 32, "rope_axes_dim": (8, 12, 12),
}  # fmt: skip
OMNIGEN = {
    "hidden_size": 64, "num_layers": 3, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1,
    "multiple_of": 32, "axes_dim_rope": (8, 12, 12), "axes_lens": (64, 64, 64), "text_feat_dim": 32,
}  # fmt: skip
BOOGU = {key: value for key, value in OMNIGEN.items() if key != "text_feat_dim"}
BOOGU |= {"num_layers": 2, "num_double_stream_layers": 2, "instruction_feat_dim": 32}
IDEOGRAM = {
    "in_channels": 16, "num_layers": 3, "num_attention_heads": 1, "attention_head_dim": 32, "intermediate_size": 32,
    "adaln_dim": 16, "llm_features_dim": 32, "mrope_section": (6, 5, 5),
}  # fmt: skip
PIXELDIT = {
    "num_groups": 2, "hidden_size": 32, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 16, "pixel_num_groups": 1,
    "patch_depth": 2, "pixel_depth": 2, "patch_size": 4, "txt_embed_dim": 32,
}  # fmt: skip
PID = {
    **PIXELDIT, "lq_latent_channels": 4, "lq_hidden_dim": 16, "lq_num_res_blocks": 1, "lq_interval": 1, "sr_scale": 1,
    "latent_spatial_down_factor": 4,
}  # fmt: skip
HYDIT = {
    "hidden_size": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0, "text_states_dim": 32, "text_states_dim_t5": 32,
    "text_len": 4, "text_len_t5": 4, "size_cond": False,
}  # fmt: skip
LENS = {
    "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 1,
    "enc_hidden_dim": 32, "axes_dims_rope": (8, 12, 12), "selected_layer_index": (0, 1),
}  # fmt: skip


def image(noise, **more):
    return {"x": noise(1, 4, 8, 8), "context": noise(1, 5, 32), **more}


def image16(noise, **more):
    return {"x": noise(1, 16, 8, 8), "context": noise(1, 5, 32), **more}


def hydit_inputs(noise):
    masks = dict.fromkeys(("text_embedding_mask", "text_embedding_mask_t5"), torch.ones(1, 4))
    return {"x": noise(1, 4, 8, 8), "context": noise(1, 4, 32), "encoder_hidden_states_t5": noise(1, 4, 32), **masks}


NETWORKS = {
    "SD1": ("comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel", UNET, image),
    "SDXL": ("comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel", SDXL, lambda noise: image(noise, y=noise(1, 32))),
    "SD3": (
        "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper", SD3,
        lambda noise: image16(noise, y=noise(1, 32)),
    ),
    "Flux": (
        "comfy.ldm.flux.model.Flux", FLUX, lambda noise: image(noise, y=noise(1, 32), guidance=torch.full((1,), 3.5)),
    ),
    "Flux 2": ("comfy.ldm.flux.model.Flux", FLUX2, lambda noise: image(noise, guidance=torch.full((1,), 3.5))),
    "Chroma": ("comfy.ldm.chroma.model.Chroma", CHROMA, lambda noise: image(noise, guidance=torch.zeros(1))),
    "Chroma Radiance": (
        "comfy.ldm.chroma_radiance.model.ChromaRadiance", RADIANCE,
        lambda noise: image(noise, guidance=torch.zeros(1), x=noise(1, 3, 8, 8)),
    ),
    "Qwen-Image": (
        "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel", QWEN,
        lambda noise: {"x": noise(1, 16, 1, 8, 8), "context": noise(1, 5, 32)},
    ),
    "MageFlow": (
        "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel", {**QWEN, "in_channels": 16, "out_channels": 16}, image16,
    ),
    "Lens": (
        "comfy.ldm.lens.model.LensTransformer2DModel", LENS,
        lambda noise: {"x": noise(1, 16, 8, 8), "context": noise(1, 5, 64)},
    ),
    "Lumina 2": ("comfy.ldm.lumina.model.NextDiT", LUMINA, lambda noise: image16(noise, num_tokens=5)),
    "Z-Image": ("comfy.ldm.lumina.model.NextDiT", ZIMAGE, lambda noise: image16(noise, num_tokens=5)),
    "Z-Image, pixels": (
        "comfy.ldm.lumina.model.NextDiTPixelSpace", ZIMAGE_PIXEL,
        lambda noise: image(noise, num_tokens=5, x=noise(1, 3, 8, 8)),
    ),
    "AuraFlow": ("comfy.ldm.aura.mmdit.MMDiT", AURA, image),
    "PixArt": ("comfy.ldm.pixart.pixartms.PixArtMS", PIXART, lambda noise: image(noise, x=noise(1, 4, 40, 40))),
    "HiDream-I1": (
        "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel", HIDREAM,
        lambda noise: image16(noise, y=noise(1, 32), encoder_hidden_states_llama3=noise(1, 3, 5, 32)),
    ),
    "Krea 2": (
        "comfy.ldm.krea2.model.SingleStreamDiT", KREA,
        lambda noise: {"x": noise(1, 16, 8, 8), "context": noise(1, 5, 64)},
    ),
    "Ernie-Image": (
        "comfy.ldm.ernie.model.ErnieImageModel", ERNIE, lambda noise: {"x": noise(1, 8, 8, 8), "context": noise(1, 5, 32)},
    ),
    "OmniGen 2": (
        "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel", OMNIGEN, lambda noise: image16(noise, num_tokens=5),
    ),
    "Boogu": ("comfy.ldm.boogu.model.BooguTransformer2DModel", BOOGU, lambda noise: image16(noise, num_tokens=5)),
    "Ideogram 4": ("comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel", IDEOGRAM, image16),
    "PixelDiT": (
        "comfy.ldm.pixeldit.model.PixDiT_T2I", PIXELDIT, lambda noise: {"x": noise(1, 3, 8, 8), "context": noise(1, 5, 32)},
    ),
    "PiD": (
        "comfy.ldm.pixeldit.pid.PidNet", PID,
        lambda noise: image(noise, x=noise(1, 3, 8, 8), lq_latent=noise(1, 4, 2, 2), degrade_sigma=torch.full((1,), 0.3)),
    ),
    "Hunyuan-DiT": ("comfy.ldm.hydit.models.HunYuanDiT", HYDIT, hydit_inputs),
}  # fmt: skip
