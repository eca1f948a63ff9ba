"""Which base and which profile a file is for: key layouts of the three kinds of trainers, and the names files are published under."""

from pathlib import Path

import pytest
from comfyui_distillery.samplers.turbo import PROFILES, base_of_lora, candidates
from comfyui_distillery.samplers.turbo.bases import BASES, bases_of_model
from comfyui_distillery.samplers.turbo.detect import bases_of_lora, is_dedistilled
from safetensors import safe_open

from .lora_layouts import FLUX, LAYERS, RANK, comfyui, kohya, kohya_diffusers, lora, peft, sd3, unet, wan

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("layout", [kohya, comfyui, peft, kohya_diffusers])
@pytest.mark.parametrize("base", LAYERS)
def test_the_base_is_read_from_the_layers_in_every_layout(base, layout):
    assert base_of_lora(layout(base)) == base
    assert base_of_lora(layout(base) | {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (RANK, 768)}) == base


@pytest.mark.parametrize(
    "prefix, down, up",
    [
        ("base_model.model.", ".lora_A.weight", ".lora_B.weight"),  # flash-sd3 and other training scripts of diffusers
        ("unet.base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"),
        ("", ".lora_down.weight", ".lora_up.weight"),
        ("model.diffusion_model.", ".lora.down.weight", ".lora.up.weight"),
        ("transformer.", "_lora.down.weight", "_lora.up.weight"),
    ],
)
def test_other_prefixes_and_suffixes_in_use(prefix, down, up):
    for base in ("sd3", "pixart", "flux", "wan21"):
        assert base_of_lora(lora(LAYERS[base][1], prefix, down, up)) == base


def test_old_diffusers_attention_processors():
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"
    assert base_of_lora({f"{name}.down.weight": (4, 768), f"{name}.up.weight": (320, 4)}) == "sd15"


@pytest.mark.parametrize("net", ["dit", "unet"])
def test_the_bundled_students_are_for_the_bundled_models(net):
    with safe_open(ROOT / "models" / f"shapes-turbo-{net}.safetensors", "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  a file is no dict
    assert base_of_lora(shapes) == f"shapes-{net}"


def test_wan_halves_and_flux_models_have_the_same_layers():
    assert bases_of_lora(kohya("wan21")) == ("wan21", "wan22")
    assert bases_of_lora(kohya("flux")) == ("flux", "flux-schnell")


def test_flux_and_chroma_are_told_apart_by_what_only_one_of_them_has_and_else_not():
    attention = {layer: widths for layer, widths in FLUX[0].items() if "mod" not in layer}
    neither = lora(attention, "diffusion_model.", ".lora_A.weight", ".lora_B.weight")
    assert base_of_lora(neither) is None and bases_of_lora(neither) == ("flux", "flux-schnell", "chroma")
    chroma = attention | {"distilled_guidance_layer.layers.0.in_layer": (5120, 5120)}
    assert base_of_lora(lora(chroma, "lora_unet_", ".lora_down.weight", ".lora_up.weight", "_")) == "chroma"


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 768)},
        {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)},  # no LoRA
        lora(unet(2048, 1, 2)[0], "lora_unet_", ".lora_down.weight", ".lora_up.weight", "_"),  # Segmind Vega
        lora(wan(3072)[0], "diffusion_model.", ".lora_A.weight", ".lora_B.weight"),  # Wan 2.2 5B
        lora(sd3(1536, 24)[0] | {"joint_blocks.0.x_block.attn2.qkv": (1536, 4608)}, "diffusion_model.", ".lora_A.weight", ".lora_B.weight"),
    ],
    ids=["empty", "text encoder", "checkpoint", "vega", "wan 5B", "sd3.5 medium"],
)
def test_what_no_profile_is_for_is_no_base(shapes):
    assert base_of_lora(shapes) is None


# File names


@pytest.mark.parametrize(
    "base, name, key, steps",
    [
        ("sdxl", "sdxl_lightning_4step_lora.safetensors", "sdxl-lightning", 4),
        ("sdxl", "SDXL/sdxl_lightning_8step_lora.safetensors", "sdxl-lightning", 8),
        ("sdxl", "Hyper-SDXL-8steps-CFG-lora.safetensors", "hyper-sdxl-cfg", 8),
        ("sdxl", "Hyper-SDXL-4steps-lora.safetensors", "hyper-sdxl", 4),
        ("sdxl", "Hyper-SDXL-1step-lora.safetensors", "hyper-sdxl-unified", None),
        ("sd15", "Hyper-SD15-12steps-CFG-lora.safetensors", "hyper-sd15-cfg", 12),
        ("sd15", "Hyper-SD15-2steps-lora.safetensors", "hyper-sd15", 2),
        ("sd3", "Hyper-SD3-16steps-CFG-lora.safetensors", "hyper-sd3-cfg", 16),
        ("flux", "Hyper-FLUX.1-dev-8steps-lora.safetensors", "hyper-flux", 8),
        ("sdxl", "dmd2_sdxl_4step_lora_fp16.safetensors", "dmd2-sdxl", 4),
        ("sdxl", "pcm_sdxl_smallcfg_4step_converted.safetensors", "pcm-sdxl-smallcfg", 4),
        ("sdxl", "pcm_sdxl_normalcfg_16step_converted.safetensors", "pcm-sdxl-normalcfg", 16),
        ("sd15", "pcm_sd15_lcmlike_lora_converted.safetensors", "pcm-sd15-stochastic", None),
        ("sd15", "lcm-lora-sdv1-5.safetensors", "lcm-lora-sd15", None),
        ("sdxl", "lcm_lora_sdxl.safetensors", "lcm-lora-sdxl", None),
        ("ssd-1b", "lcm-lora-ssd-1b.safetensors", "lcm-lora-ssd-1b", None),
        ("sdxl", "TCD-SDXL-LoRA.safetensors", "tcd-sdxl", None),
        ("sd2", "tcd_sd21_base_lora.safetensors", "tcd-sd21", None),
        ("pixart", "flash-pixart.safetensors", "flash-pixart", None),
        ("sd3", "flash_sd3.safetensors", "flash-sd3", None),
        ("qwen-image", "Qwen-Image-Lightning-8steps-V1.0.safetensors", "qwen-image-lightning", 8),
        ("qwen-image", "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors", "qwen-image-lightning", 4),
        ("qwen-image", "Wuli-Qwen-Image-2512-Turbo-LoRA-2steps-V1.0-bf16.safetensors", "qwen-image-turbo-wuli", 2),
        ("wan21", "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", "wan21-lightx2v", None),
        ("wan21", "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors", "wan21-lightx2v", None),
        ("wan21", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors", "wan22-t2v-lightx2v", 4),
        ("wan21", "Wan2.2-Lightning_I2V-A14B-4steps-lora_LOW_fp16.safetensors", "wan22-i2v-lightx2v", 4),
        ("wan21", "Wan21_CausVid_14B_T2V_lora_rank32.safetensors", "causvid-wan21", None),
        ("wan21-1.3b", "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors", "causvid-wan21-1.3b", None),
        ("flux2", "Flux_2-Turbo-LoRA_comfyui.safetensors", "flux2-turbo", None),
        ("flux2", "Flux2TurboComfyv2.safetensors", "flux2-turbo", None),
        ("wan21", "Wan21_CausVid_14B_T2V_lora_rank32_v1_5_no_first_block.safetensors", "causvid-wan21", None),
        ("wan21", "Wan21_I2V_14B_lightx2v_cfg_step_distill_lora_adaptive_rank_quantile_0.15_bf16.safetensors", "wan21-lightx2v", None),
        ("wan21-1.3b", "Wan2.1-T2V-1.3B-Self-Forcing-DMD-FP16-LoRA-Rank32.safetensors", "self-forcing-wan21-1.3b", None),
        ("ltx2", "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors", "ltx2-distilled", None),
        ("sdxl", "LCM_LoRA_Weights_SDXL.safetensors", "lcm-lora-sdxl", None),
        ("sdxl", "TCD-SDXL-LoRA/pytorch_lora_weights.safetensors", "tcd-sdxl", None),
        ("sdxl", "flash-sdxl/pytorch_lora_weights.safetensors", "flash-sdxl", None),
        ("flux", "FLUX.1-Turbo-Alpha.safetensors", "flux-turbo-alpha", None),
        ("ltx2", "ltx-2-19b-distilled-lora-384.safetensors", "ltx2-distilled", None),
        ("ltxv", "ltxv-13b-0.9.7-distilled-lora128.safetensors", "ltxv-distilled", None),
        ("hunyuan-video", "hyvideo_FastVideo_LoRA-fp8.safetensors", "hunyuan-fast", None),
    ],
)
def test_published_loras_are_told_by_name_and_layers(base, name, key, steps):
    for layout in (kohya, peft):
        (found, count, why), *others = candidates(layout(base), {}, name)
        assert (found, count) == (key, steps) and not others
        assert any(part in why for part in name.split("/")) and BASES[PROFILES[key].base].title in why


@pytest.mark.parametrize(
    "name, keys",
    [
        ("sd_xl_turbo_1.0_fp16.safetensors", ["sdxl-turbo"]),
        ("sd_turbo.safetensors", ["sd-turbo"]),
        ("sd3.5_large_turbo.safetensors", ["sd3.5-large-turbo"]),
        ("flux1-schnell-fp8.safetensors", ["flux-schnell"]),
        ("sdxl_lightning_1step_x0.safetensors", ["sdxl-lightning-1step"]),
        ("sdxl_lightning_4step.safetensors", ["sdxl-lightning"]),
        ("dmd2_sdxl_1step_unet_fp16.safetensors", ["dmd2-sdxl-1step"]),
        ("Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors", ["hyper-sdxl-1step"]),
        ("z_image_turbo_bf16.safetensors", ["z-image-turbo"]),
        ("flux-2-klein-4b-fp8.safetensors", ["flux2-klein-4b"]),
        ("flux-2-klein-base-4b-fp8.safetensors", []),
        ("hidream_i1_fast_fp8.safetensors", ["hidream-fast"]),
        ("ltx-2.3-22b-distilled-fp8.safetensors", ["ltx2-distilled"]),
        ("ltxv-13b-0.9.8-distilled.safetensors", ["ltxv-distilled"]),
        ("LCM_Dreamshaper_v7_4k.safetensors", ["lcm-sd15"]),
        ("krea2_turbo_fp8_scaled.safetensors", ["krea2-turbo"]),
        ("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", []),
        ("Wan21_T2V_14B.safetensors", []),
        ("sd_xl_base_1.0.safetensors", []),
        ("flux1-dev.safetensors", []),
        ("Chroma1-HD-fp8mixed.safetensors", []),
        ("Chroma1-Flash.safetensors", ["chroma-flash"]),
        ("chroma-unlocked-v47-flash-heun-8steps-cfg1_float8_e4m3fn_scaled_learned.safetensors", ["chroma-flash"]),
        ("hunyuan_video_FastVideo_720_fp8_e4m3fn.safetensors", ["hunyuan-fast"]),
        ("fast_hunyuan_video_t2v_720p_bf16.safetensors", ["hunyuan-fast"]),
        ("qwen_image_fp8_e4m3fn.safetensors", []),
        ("v1-5-pruned-emaonly.safetensors", []),
        ("", []),
    ],
)
def test_published_checkpoints_are_told_by_name_and_undistilled_ones_are_not_taken_for_them(name, keys):
    assert [key for key, _, _ in candidates({}, {}, name)] == keys


def test_layers_overrule_the_name():
    assert candidates(kohya("sd15"), {}, "sdxl_lightning_4step_lora.safetensors") == []
    assert [key for key, _, _ in candidates({}, {}, "lcm-lora.safetensors")] == ["lcm-lora-sd15", "lcm-lora-sdxl", "lcm-lora-ssd-1b"]
    assert [key for key, _, _ in candidates(kohya("sdxl"), {}, "lcm-lora.safetensors")] == ["lcm-lora-sdxl"]


def test_a_style_lora_for_a_distilled_checkpoint_is_no_turbo_lora():
    assert candidates(peft("z-image"), {}, "pixel_art_style_z_image_turbo.safetensors") == []


@pytest.mark.parametrize(
    "base, name",
    [
        ("sdxl", "the_flash_sdxl.safetensors"),
        ("sd15", "camera_flash_sd15.safetensors"),
        ("sdxl", "flash_sdxl_photography.safetensors"),
        ("hunyuan-video", "hunyuan_video_fast_motion.safetensors"),
        ("qwen-image", "qwen-image-lightning-storm.safetensors"),
        ("wan21-1.3b", "self_forcing_style.safetensors"),
        ("chroma", "chroma_camera_flash.safetensors"),
        ("sdxl", "lightning_storm_style.safetensors"),
        ("sdxl", "lightning_mage_sdxl_4step_tutorial.safetensors"),
        ("sdxl", "turbo_car.safetensors"),
        ("sdxl", "lcm_lora_anime_style.safetensors"),
        ("sd15", "lcm_style_sd15.safetensors"),
        ("flux", "flux_turbo_alpha_wolf.safetensors"),
        (None, "chroma_flash_photography.safetensors"),
    ],
)
def test_a_style_that_is_called_like_a_distilled_model_is_none(base, name):
    assert candidates(kohya(base) if base in LAYERS else {}, {}, name) == []


@pytest.mark.parametrize(
    "name",
    [
        "lcm-lora-sdxl/pytorch_lora_weights.safetensors",
        "/home/somebody/models/loras/lcm-lora-sdxl/pytorch_lora_weights.safetensors",
        "loras\\lcm-lora-sdxl\\pytorch_lora_weights.safetensors",
        "lcm-lora-sdxl/unet/diffusion_pytorch_model.fp16.safetensors",
    ],
)
def test_the_folder_speaks_for_a_name_that_every_trainer_gives(name):
    ((key, _, why),) = candidates(kohya("sdxl"), {}, name)
    assert key == "lcm-lora-sdxl" and why.startswith("its folder is lcm-lora-sdxl,")
    assert candidates(kohya("sdxl"), {}, "lcm-lora-sdxl/dogs.safetensors") == []
    assert candidates(kohya("sdxl"), {}, "pytorch_lora_weights.safetensors") == []


@pytest.mark.parametrize(
    "name, is_undone",
    [
        ("OpenFLUX.1.safetensors", True),
        ("open-flux-schnell-fp8.safetensors", True),
        ("checkpoints/LibreFLUX.safetensors", True),
        ("Flux.1-schnell-dedistilled.safetensors", True),
        ("flux_schnell_de-distilled.safetensors", True),
        ("LibreFLUX/transformer/diffusion_pytorch_model.safetensors", True),
        ("flux1-schnell-fp8.safetensors", False),
        ("ltx-2-19b-distilled.safetensors", False),
        ("wide_distilled.safetensors", False),
        ("wan_fun_distill_lightx2v_4steps.safetensors", False),
        ("", False),
    ],
)
def test_a_model_whose_distillation_was_undone_is_no_distilled_one(name, is_undone):
    assert is_dedistilled(name) is is_undone
    assert not (is_undone and candidates({}, {}, name))


def test_metadata_speaks_where_the_name_does_not_and_the_name_comes_first():
    metadata = {"ss_output_name": "sdxl_lightning_4step_lora", "modelspec.title": "Hyper-SDXL-8steps-lora"}
    ((key, steps, why), *_) = candidates(kohya("sdxl"), metadata, "fast.safetensors")
    assert (key, steps) == ("sdxl-lightning", 4) and "its metadata says ss_output_name sdxl_lightning_4step_lora" in why
    assert candidates(kohya("sdxl"), metadata, "dmd2_sdxl_4step_lora.safetensors")[0][0] == "dmd2-sdxl"
    assert candidates(kohya("sdxl"), {}, "fast.safetensors") == []


# Loaded models


@pytest.mark.parametrize(
    "core, config, bases",
    [
        ("SDXL", {"model_channels": 320}, ("sdxl",)),
        ("SD3", {"depth": 24, "x_block_self_attn_layers": []}, ("sd3",)),
        ("SD3", {"depth": 24, "x_block_self_attn_layers": list(range(13))}, ()),  # 3.5 Medium
        ("SD3", {"depth": 38, "x_block_self_attn_layers": []}, ("sd35-large",)),
        ("FluxSchnell", {"hidden_size": 3072}, ("flux-schnell",)),
        ("FluxSchnell", {"hidden_size": 128}, ("shapes-dit",)),
        ("SD15", {"model_channels": 64}, ("shapes-unet",)),
        ("WAN21_T2V", {"dim": 5120}, ("wan21", "wan22")),
        ("WAN21_T2V", {"dim": 1536}, ("wan21-1.3b",)),
        ("Flux2", {"hidden_size": 4096}, ("flux2-klein-9b",)),
        ("StableAudio", {}, ()),
    ],
)
def test_models_are_told_by_their_class_and_width(core, config, bases):
    assert bases_of_model(core, config) == bases
