"""name: (network, settings of its constructor, inputs for a function that draws noise of a shape). Video, audio and 3D."""

import torch
from tiny_image_networks import UNET

SVD = {
    **UNET, "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 32,
    "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True, "use_spatial_context": True,
    "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1],
}  # fmt: skip
HUNYUAN_VIDEO = {
    "in_channels": 4, "out_channels": 4, "patch_size": [1, 2, 2], "hidden_size": 32, "num_heads": 1, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 256, "mlp_ratio": 2.0, "qkv_bias": True, "vec_in_dim": 32,
    "context_in_dim": 32, "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
WAN = {
    "dim": 32, "ffn_dim": 32, "num_heads": 1, "num_layers": 3, "text_dim": 32, "in_dim": 4, "out_dim": 4, "freq_dim": 16,
    "text_len": 8,
}  # fmt: skip
LTXV = {
    "in_channels": 8, "cross_attention_dim": 32, "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": 32,
    "num_layers": 3,
}  # fmt: skip
LTXAV = {
    **LTXV, "audio_in_channels": 128, "audio_cross_attention_dim": 16, "audio_attention_head_dim": 8,
    "audio_num_attention_heads": 2, "connector_num_layers": 1, "connector_attention_head_dim": 16,
    "connector_num_attention_heads": 2,
}  # fmt: skip
COSMOS = {
    "max_img_h": 16, "max_img_w": 16, "max_frames": 8, "in_channels": 4, "out_channels": 4, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "num_blocks": 3, "num_heads": 2, "crossattn_emb_channels": 32,
    "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16,
}  # fmt: skip
COSMOS1 = {
    **COSMOS, "block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
ANIMA = {**COSMOS, "crossattn_emb_channels": 1024}
KANDINSKY = {
    "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 32, "in_text_dim2": 32, "time_dim": 32, "model_dim": 64,
    "ff_dim": 64, "visual_embed_dim": 16, "num_text_blocks": 1, "num_visual_blocks": 3, "axes_dims": (8, 12, 12),
}  # fmt: skip
COGVIDEO = {
    "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 4, "out_channels": 4, "time_embed_dim": 32,
    "text_embed_dim": 32, "num_layers": 3, "use_rotary_positional_embeddings": True,
}  # fmt: skip
MOCHI = {
    "hidden_size_x": 64, "hidden_size_y": 32, "depth": 3, "num_heads": 2, "mlp_ratio_x": 192.0, "mlp_ratio_y": 2.0,
    "use_t5": True, "t5_feat_dim": 32, "t5_token_length": 5, "learn_sigma": False, "qk_norm": True,
    "patch_embed_bias": True, "timestep_mlp_bias": True, "timestep_scale": 1000.0,
}  # fmt: skip
JOYIMAGE = {
    "in_channels": 4, "hidden_size": 32, "num_attention_heads": 1, "text_dim": 32, "mlp_width_ratio": 2.0, "num_layers": 3,
    "rope_dim_list": [8, 12, 12],
}  # fmt: skip
MINIMAX = {
    "hidden_size": 64, "num_layers": 3, "token_refiner_num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32,
    "ffn_hidden_size": 64, "latents_dim": 4, "audio_latents_dim": 4, "text_dim": 32, "timestep_input_dim": 16,
    "time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4,
}  # fmt: skip
SEEDVR = {
    "norm_eps": 1e-5, "num_layers": 4, "mlp_type": "swiglu", "vid_dim": 64, "txt_in_dim": 32, "heads": 1, "head_dim": 64,
    "mm_layers": 2, "rope_dim": 60, "vid_out_norm": True,
}  # fmt: skip
ACE = {
    "num_layers": 3, "inner_dim": 32, "attention_head_dim": 16, "num_attention_heads": 2, "mlp_ratio": 2.0,
    "speaker_embedding_dim": 32, "text_embedding_dim": 32, "ssl_latent_dims": [8], "lyric_encoder_vocab_size": 16,
}  # fmt: skip
ACE15 = {
    "in_channels": 24, "hidden_size": 32, "text_hidden_dim": 32, "timbre_hidden_dim": 8, "audio_acoustic_hidden_dim": 8,
    "num_dit_layers": 3, "num_lyric_layers": 1, "num_timbre_layers": 1, "num_tokenizer_layers": 1, "num_heads": 2,
    "num_kv_heads": 1, "head_dim": 16, "intermediate_size": 32, "fsq_dim": 32, "encoder_hidden_size": 32,
    "encoder_intermediate_size": 32, "encoder_num_heads": 2,
}  # fmt: skip
STABLE_AUDIO = {
    "io_channels": 8, "embed_dim": 64, "cond_token_dim": 32, "global_cond_dim": 32, "depth": 3, "num_heads": 2,
    "project_cond_tokens": False,
}  # fmt: skip
HUNYUAN_3D = {"in_channels": 8, "context_in_dim": 32, "hidden_size": 64, "num_heads": 1, "depth": 2, "depth_single_blocks": 2}
HUNYUAN_3D_21 = {
    "in_channels": 8, "hidden_size": 32, "context_dim": 32, "depth": 4, "num_heads": 2, "num_moe_layers": 1,
    "guidance_cond_proj_dim": None, "num_experts": 2, "moe_top_k": 1,
}  # fmt: skip
TRIPOSPLAT = {
    "q_token_length": 16, "in_channels": 8, "model_channels": 64, "cond_channels": 32, "out_channels": 8, "num_blocks": 3,
    "num_refiner_blocks": 1, "num_head_channels": 32,
}  # fmt: skip


def video(noise, **more):
    return {"x": noise(1, 4, 2, 8, 8), "context": noise(1, 5, 32), **more}


def guided_video(noise):
    return video(noise, y=noise(1, 32), guidance=torch.full((1,), 6.0))


def svd_inputs(noise):
    frames = {"num_video_frames": 2, "image_only_indicator": torch.zeros(1, 2)}
    return {"x": noise(2, 4, 8, 8), "context": noise(2, 1, 32), "y": noise(2, 32), **frames}


def vace_inputs(noise):
    return video(noise, vace_context=noise(1, 2, 8, 2, 8, 8), vace_strength=[1.0, 0.5])


def ace_inputs(noise):
    lyrics = {"lyric_token_idx": torch.tensor([[1, 2, 3]]), "lyric_mask": torch.ones(1, 3)}
    return {"x": noise(1, 8, 16, 8), "context": noise(1, 5, 32), "speaker_embeds": noise(1, 32), **lyrics}


def ace15_inputs(noise):
    return {
        "x": noise(1, 8, 20), "context": noise(1, 5, 32), "lyric_embed": noise(1, 4, 32), "refer_audio": noise(1, 8, 20),
    }  # fmt: skip


WAN_VIDEO = {name: (f"comfy.ldm.wan.{path}", {**WAN, **more}, inputs) for name, path, more, inputs in (
    ("Wan", "model.WanModel", {}, video),
    ("Wan VACE", "model.VaceWanModel", {"vace_layers": 3, "vace_in_dim": 8}, vace_inputs),
    ("Wan Camera", "model.CameraWanModel", {}, video),
    ("Wan HuMo", "model.HumoWanModel", {}, video),
    ("Wan S2V", "model.WanModel_S2V", {"audio_inject_layers": [0], "audio_dim": 32, "cond_dim": 4}, video),
    ("Wan SCAIL", "model.SCAILWanModel", {}, video),
    ("Wan SCAIL 2", "model.SCAIL2WanModel", {"mask_in_dim": 4}, video),
    ("Wan Animate", "model_animate.AnimateWanModel", {}, video),
    ("Wan Dancer", "model_wandancer.WanDancerModel", {"audio_inject_layers": [0]}, video),
    ("Wan Causal", "ar_model.CausalWanModel", {}, video),
)}  # fmt: skip
NETWORKS = {
    "SVD": ("comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel", SVD, svd_inputs),
    "HunyuanVideo": ("comfy.ldm.hunyuan_video.model.HunyuanVideo", HUNYUAN_VIDEO, guided_video),
    **WAN_VIDEO,
    "LTXV": (
        "comfy.ldm.lightricks.model.LTXVModel", LTXV, lambda noise: video(noise, x=noise(1, 8, 2, 8, 8), attention_mask=None),
    ),
    "LTXAV": (
        "comfy.ldm.lightricks.av_model.LTXAVModel", LTXAV,
        lambda noise: {
            "x": [noise(1, 8, 2, 4, 4), noise(1, 8, 6, 16)], "context": noise(1, 5, 64), "a_timestep": torch.full((1,), 0.7),
        },
    ),
    "Cosmos 1": (
        "comfy.ldm.cosmos.model.GeneralDIT", COSMOS1, lambda noise: video(noise, padding_mask=torch.zeros(1, 1, 8, 8)),
    ),
    "Cosmos Predict 2": (
        "comfy.ldm.cosmos.predict2.MiniTrainDIT", COSMOS, lambda noise: video(noise, padding_mask=torch.zeros(1, 1, 8, 8)),
    ),
    "Anima": (
        "comfy.ldm.anima.model.Anima", ANIMA,
        lambda noise: video(noise, context=noise(1, 5, 1024), padding_mask=torch.zeros(1, 1, 8, 8)),
    ),
    "Kandinsky 5": ("comfy.ldm.kandinsky5.model.Kandinsky5", KANDINSKY, lambda noise: video(noise, y=noise(1, 32))),
    "CogVideoX": ("comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel", COGVIDEO, video),
    "Mochi": (
        "comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint", MOCHI,
        lambda noise: video(noise, attention_mask=torch.ones(1, 5, dtype=torch.bool), num_tokens=5),
    ),
    "JoyImage": ("comfy.ldm.joyimage.model.JoyImageTransformer3DModel", JOYIMAGE, video),
    "MiniMax H3": (
        "comfy.ldm.minimax.model.MiniMaxH3Model", MINIMAX,
        lambda noise: {"x": [noise(1, 4, 2, 8, 8), noise(1, 4, 2, 4)], "context": noise(1, 5, 32)},
    ),
    "SeedVR 2": (
        "comfy.ldm.seedvr.model.NaDiT", SEEDVR,
        lambda noise: {
            "x": noise(1, 16, 2, 8, 8), "context": noise(1, 5, 32), "condition": noise(1, 17, 2, 8, 8),
            "transformer_options": {"cond_or_uncond": [0]},
        },
    ),
    "ACE-Step": ("comfy.ldm.ace.model.ACEStepTransformer2DModel", ACE, ace_inputs),
    "ACE-Step 1.5": ("comfy.ldm.ace.ace_step15.AceStepConditionGenerationModel", ACE15, ace15_inputs),
    "Stable Audio": (
        "comfy.ldm.audio.dit.AudioDiffusionTransformer", STABLE_AUDIO,
        lambda noise: {"x": noise(1, 8, 16), "context": noise(1, 5, 32), "global_embed": noise(1, 32)},
    ),
    "Hunyuan3D 2": (
        "comfy.ldm.hunyuan3d.model.Hunyuan3Dv2", HUNYUAN_3D, lambda noise: {"x": noise(1, 8, 16), "context": noise(1, 5, 32)},
    ),
    "Hunyuan3D 2.1": (
        "comfy.ldm.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain", HUNYUAN_3D_21,
        lambda noise: {"x": noise(1, 8, 16), "context": noise(1, 5, 32)},
    ),
    "TripoSplat": (
        "comfy.ldm.triposplat.model.LatentSeqMMFlowModel", TRIPOSPLAT,
        lambda noise: {"x": [noise(1, 16, 8), noise(1, 1, 5)], "context": noise(1, 5, 32)},
    ),
}  # fmt: skip
