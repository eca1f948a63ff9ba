"""The base models that distilled checkpoints and LoRAs are made of, as far as ComfyUI 0.30 can load them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Base:
    """title: for people. core: names of ComfyUI's classes in comfy.supported_models. config: what their unet_config has to hold
    besides, None for a value that must be absent or None. prediction: what the undistilled network predicts: eps, v, flow or edm.
    """

    title: str
    core: tuple[str, ...]
    prediction: str
    config: dict = field(default_factory=dict)


WAN = ("WAN21_T2V", "WAN21_I2V", "WAN21_FunControl2V", "WAN21_Vace", "WAN21_Camera", "WAN22_Camera", "WAN21_HuMo", "WAN22_S2V",
       "WAN22_Animate", "WAN21_SCAIL", "WAN21_SCAIL2", "WAN21_FlowRVS", "WAN22_WanDancer")  # fmt: skip

BASES = {
    "sd15": Base("Stable Diffusion 1.5", ("SD15", "SD15_instructpix2pix"), "eps", {"model_channels": 320}),
    "sd2": Base("Stable Diffusion 2.1", ("SD20", "LotusD"), "eps"),
    "sdxl": Base("SDXL", ("SDXL", "SDXL_instructpix2pix"), "eps"),
    "ssd-1b": Base("SSD-1B", ("SSD1B",), "eps"),
    "sd3": Base("Stable Diffusion 3 Medium", ("SD3",), "flow", {"depth": 24, "x_block_self_attn_layers": []}),  # 3.5 Medium has some
    "sd35-large": Base("Stable Diffusion 3.5 Large", ("SD3",), "flow", {"depth": 38}),
    "pixart": Base("PixArt-alpha", ("PixArtAlpha",), "eps"),
    "flux": Base("Flux.1 dev", ("Flux", "FluxInpaint"), "flow"),
    "flux-schnell": Base("Flux.1 schnell", ("FluxSchnell",), "flow", {"hidden_size": 3072}),
    "flux2": Base("Flux.2 dev", ("Flux2",), "flow", {"hidden_size": 6144}),
    "flux2-klein-4b": Base("Flux.2 klein 4B", ("Flux2",), "flow", {"hidden_size": 3072}),
    "flux2-klein-9b": Base("Flux.2 klein 9B", ("Flux2",), "flow", {"hidden_size": 4096}),
    "chroma": Base("Chroma", ("Chroma",), "flow"),
    "qwen-image": Base("Qwen-Image", ("QwenImage",), "flow"),
    "z-image": Base("Z-Image", ("ZImage",), "flow"),
    "hidream": Base("HiDream-I1", ("HiDream",), "flow"),
    "krea2": Base("Krea 2", ("Krea2",), "flow"),
    "ernie-image": Base("ERNIE-Image", ("ErnieImage",), "flow"),
    "wan21": Base("Wan 2.1 14B", WAN, "flow", {"dim": 5120}),
    "wan21-1.3b": Base("Wan 2.1 1.3B", (*WAN, "WAN21_CausalAR_T2V"), "flow", {"dim": 1536}),
    "wan22": Base("Wan 2.2 14B, high and low noise", WAN, "flow", {"dim": 5120}),
    "ltxv": Base("LTX-Video", ("LTXV",), "flow"),
    "ltx2": Base("LTX-2", ("LTXAV",), "flow"),
    "hunyuan-video": Base("HunyuanVideo", ("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"), "flow"),
    "hunyuan-video-15": Base("HunyuanVideo 1.5", ("HunyuanVideo15",), "flow"),
    "cosmos-predict2": Base("Cosmos-Predict2", ("CosmosT2IPredict2", "CosmosI2VPredict2"), "cosmos"),
    "sana": Base("Sana", (), "flow"),  # no class of ComfyUI 0.30 loads it
    "shapes-dit": Base("shapes-dit, bundled", ("FluxSchnell",), "flow", {"hidden_size": 128}),
    "shapes-unet": Base("shapes-unet, bundled", ("SD15",), "eps", {"model_channels": 64}),
}  # fmt: skip


def bases_of_model(core, config):
    """Keys of BASES that a loaded model may be, by the name of its class in comfy.supported_models and its unet_config.

    Several where layers alone do not tell, as with Wan 2.1 and each half of Wan 2.2; none for a model that no profile is for.
    """
    return tuple(
        key for key, base in BASES.items()
        if core in base.core and all(config.get(name) == value for name, value in base.config.items())
    )  # fmt: skip
