"""The turbo profiles beside ComfyUI: every name it has for a layer in a LoRA file, of networks of the real sizes (without their
weights), tells the base; and the noise levels are those of the workflows it ships."""

import math

import comfy.lora
import comfy.model_sampling
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscreteDistilled
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.turbo import BASES, PROFILES, base_of_lora, bases_of_model, sigmas_of
from comfyui_distillery.samplers.turbo.detect import SAME_LAYERS, bases_of_lora
from tiny_image_networks import CHROMA, FLUX, FLUX2, PIXART, QWEN, SD3, UNET, ZIMAGE
from tiny_video_networks import COSMOS, HUNYUAN_VIDEO, LTXAV, LTXV, WAN

META = torch.device("meta")
PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "diffusion_model.", "transformer.", "unet.", "base_model.model.", "")


def sd(context, linear, depths, **more):
    levels = len(depths)
    return {
        **UNET, "model_channels": 320, "num_res_blocks": [2] * levels, "channel_mult": (1, 2, 4, 4)[:levels], "context_dim": context,
        "transformer_depth": [depth for depth in depths for _ in range(2)], "transformer_depth_middle": depths[-1] or 1,
        "transformer_depth_output": [depth for depth in depths for _ in range(3)], "use_linear_in_transformer": linear,
        "use_temporal_attention": False, "num_heads": 8, "adm_in_channels": None, **more,
    }  # fmt: skip


XL = {"adm_in_channels": 2816, "num_classes": "sequential"}
SSD_1B = {"transformer_depth_middle": -1, "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4]}
FLUX_DEV = {**FLUX, "image_model": "flux", "hidden_size": 3072, "num_heads": 24, "axes_dim": [16, 56, 56], "depth": 19,
            "depth_single_blocks": 38, "mlp_ratio": 4.0, "vec_in_dim": 768, "context_in_dim": 4096}  # fmt: skip


def flux2(width, depth, single):
    return {**FLUX2, "image_model": "flux2", "hidden_size": width, "num_heads": width // 128, "axes_dim": [32] * 4, "depth": depth,
            "depth_single_blocks": single, "mlp_ratio": 3.0}  # fmt: skip


def sd3(depth, self_attention=()):
    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    return {**SD3, "depth": depth, "num_blocks": depth, "adm_in_channels": 2048, "context_embedder_config": context,
            "x_block_self_attn_layers": list(self_attention)}  # fmt: skip


def wan(width, heads):
    return {**WAN, "image_model": "wan2.1", "model_type": "t2v", "dim": width, "ffn_dim": 8960, "num_heads": heads, "num_layers": 8}


LTX = {**LTXV, "image_model": "ltxv", "attention_head_dim": 128, "num_attention_heads": 32, "cross_attention_dim": 4096}
MODELS = {  # base: (class in comfy.supported_models, unet_config)
    "sd15": ("SD15", sd(768, False, (1, 1, 1, 0))),
    "sd2": ("SD20", sd(1024, True, (1, 1, 1, 0))),
    "sdxl": ("SDXL", sd(2048, True, (0, 2, 10), **XL)),
    "ssd-1b": ("SSD1B", sd(2048, True, (0, 2, 4), **XL, **SSD_1B)),
    "sd3": ("SD3", sd3(24)),
    "sd35-large": ("SD3", sd3(38)),
    "pixart": ("PixArtAlpha", {**PIXART, "image_model": "pixart_alpha", "hidden_size": 1152, "num_heads": 16}),
    "flux": ("Flux", FLUX_DEV),
    "flux-schnell": ("FluxSchnell", {**FLUX_DEV, "guidance_embed": False}),
    "flux2": ("Flux2", flux2(6144, 8, 48)),
    "flux2-klein-4b": ("Flux2", flux2(3072, 5, 20)),
    "flux2-klein-9b": ("Flux2", flux2(4096, 8, 24)),
    "chroma": (
        "Chroma", {**CHROMA, "image_model": "chroma", "hidden_size": 3072, "num_heads": 24, "axes_dim": [16, 56, 56], "depth": 19,
                   "depth_single_blocks": 38, "mlp_ratio": 4.0, "out_dim": 3072, "hidden_dim": 5120},
    ),
    "qwen-image": ("QwenImage", {**QWEN, "image_model": "qwen_image", "attention_head_dim": 128, "num_attention_heads": 24}),
    "z-image": ("ZImage", {**ZIMAGE, "image_model": "lumina2", "dim": 3840, "n_heads": 30, "n_kv_heads": 30, "axes_dims": (32, 48, 48)}),
    "wan21": ("WAN21_T2V", wan(5120, 40)),
    "wan21-1.3b": ("WAN21_T2V", wan(1536, 12)),
    "ltxv": ("LTXV", LTX),
    "ltx2": ("LTXAV", {**LTXAV, **LTX, "image_model": "ltxav"}),
    "hunyuan-video": (
        "HunyuanVideo", {**HUNYUAN_VIDEO, "image_model": "hunyuan_video", "hidden_size": 3072, "num_heads": 24, "depth": 20,
                         "axes_dim": [16, 56, 56], "depth_single_blocks": 40, "mlp_ratio": 4.0},
    ),
    "cosmos-predict2": ("CosmosT2IPredict2", {**COSMOS, "image_model": "cosmos_predict2", "model_channels": 2048, "num_heads": 16}),
}  # fmt: skip

UNTOLD = {"chroma": ("transformer.", "lora_transformer_", "lycoris_", "")}  # in these, core has only the names that Flux has too


def layouts(core, config):
    """{prefix: {key: shape}}: a LoRA of all layers in every layout that core reads for the model."""
    settings = getattr(comfy.supported_models, core)(dict(config))
    settings.set_inference_dtype(torch.bfloat16, None)
    model = settings.get_model({}, device=META)
    weights = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {}
    for name, target in comfy.lora.model_lora_keys_unet(model, {}).items():
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        shape = weights.get(key, ())
        if len(shape) < 2:
            continue
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        file = found.setdefault(prefix, {})
        file[f"{name}.lora_A.weight"] = (16, math.prod(shape[1:]))
        file[f"{name}.lora_B.weight"] = (offset[2] if offset else shape[0], 16)
    return found


@pytest.mark.parametrize("base", MODELS)
def test_the_base_is_told_by_every_name_that_core_has_for_its_layers(base):
    core, config = MODELS[base]
    assert base in bases_of_model(core, config)
    same = next((keys for keys in SAME_LAYERS.values() if base in keys), (base,))
    for prefix, file in layouts(core, config).items():
        told = same[0] if prefix not in UNTOLD.get(base, ()) else None
        assert base_of_lora(file) == told, prefix
        attention = {key: shape for key, shape in file.items() if "attn" in key or "attention" in key}
        assert base in bases_of_lora(attention), f"{prefix}, attention only"


def test_sd35_medium_has_the_depth_of_sd3_medium_and_is_another():
    config = sd3(24, range(13))
    assert bases_of_model("SD3", config) == ()
    assert all(bases_of_lora(file) == () for file in layouts("SD3", config).values())


@pytest.mark.parametrize("key", [key for key, profile in PROFILES.items() if profile.prediction in ("eps", "v", "x0")])
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_on_the_50_levels_of_cores_lcm_patch_a_run_is_the_same_or_refused(key, denoise):
    profile, runs = PROFILES[key], []
    steps = max(profile.steps)
    for kind in (comfy.model_sampling.ModelSamplingDiscrete, ModelSamplingDiscreteDistilled):
        sampling = type("Sampling", (kind, comfy.model_sampling.EPS), {})()
        sampling.zsnr = None
        runs.append((Path("v" if profile.prediction == "v" else "eps", log_sigmas=sampling.log_sigmas), sampling.sigmas.double()))
    if profile.spacing == "lcm" and profile.sampler == "lcm":
        whole, distilled = [sigmas_of(profile, steps, *run, denoise) for run in runs]
        assert torch.allclose(distilled, whole, rtol=1e-6, atol=0)
    elif profile.unit != "sigmas":
        with pytest.raises(ValueError, match="counts 1000 timesteps, and this model has 50, as ComfyUI's ModelSamplingDiscrete"):
            sigmas_of(profile, steps, *runs[1], denoise)


@pytest.mark.parametrize(
    "key, steps, scheduler",
    [
        ("flux-schnell", 4, "simple"), ("qwen-image-lightning", 4, "simple"), ("qwen-image-lightning", 8, "simple"),
        ("qwen-image-turbo-wuli", 2, "simple"), ("z-image-turbo", 8, "simple"), ("wan22-t2v-lightx2v", 4, "simple"),
        ("causvid-wan21", 4, "simple"), ("krea2-turbo", 8, "simple"), ("hidream-fast", 16, "normal"),
    ],
)  # fmt: skip
def test_the_levels_are_those_of_the_scheduler_in_comfyuis_templates(key, steps, scheduler):
    profile = PROFILES[key]
    sampling = type("Sampling", (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST), {})()
    sampling.set_parameters(shift=profile.shift, multiplier=1000)
    theirs = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    assert torch.allclose(sigmas_of(profile, steps, Path("flow"), sampling.sigmas.double()), theirs, rtol=1e-5, atol=1e-6)


def test_samplers_and_classes_that_profiles_name_are_this_comfyuis():
    assert all(hasattr(comfy.supported_models, core) for base in BASES.values() for core in base.core)
    assert all(p.sampler in SOLVERS or p.sampler in comfy.samplers.KSampler.SAMPLERS for p in PROFILES.values())
