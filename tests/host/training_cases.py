"""Tiny MODELs to train on, LoRAs and batches for them, and core's own answer to compare with."""

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.supported_models
import tiny
import tiny_image_networks as images
import tiny_video_networks as videos
import torch
from comfyui_distillery.distill.lora import LoraSet
from comfyui_distillery.nodes.host_conditions import Conditions
from comfyui_distillery.nodes.host_frozen import targets_of

SDXL = {  # its heads have 64 channels; ADM: the pooled prompt, and six sizes
    **tiny.SD1, "model_channels": 64, "num_classes": "sequential", "adm_in_channels": 64 + 6 * 256,
}  # fmt: skip

SUPPORTED = comfy.supported_models
ARCHITECTURES = {  # name: core's class, its network, the shape of one latent, the width of its text
    "Lumina 2": (SUPPORTED.Lumina2, {**images.LUMINA, "image_model": "lumina2"}, (16, 8, 8), 32),
    "Z-Image": (SUPPORTED.ZImage, {**images.ZIMAGE, "image_model": "lumina2"}, (16, 8, 8), 32),
    "Qwen-Image": (SUPPORTED.QwenImage, {**images.QWEN, "image_model": "qwen_image"}, (16, 1, 8, 8), 32),
    "Chroma": (SUPPORTED.Chroma, {**images.CHROMA, "image_model": "chroma"}, (4, 8, 8), 32),
    "AuraFlow": (SUPPORTED.AuraFlow, images.AURA, (4, 8, 8), 32),
    "PixArt": (SUPPORTED.PixArtAlpha, {**images.PIXART, "image_model": "pixart_alpha"}, (4, 40, 40), 32),
    "LTXV": (SUPPORTED.LTXV, {**videos.LTXV, "image_model": "ltxv", "in_channels": 128, "out_channels": 128}, (128, 2, 4, 4), 32),
    "HunyuanVideo": (SUPPORTED.HunyuanVideo, {**videos.HUNYUAN_VIDEO, "image_model": "hunyuan_video"}, (4, 2, 8, 8), 32),
    "Cosmos Predict 2": (
        SUPPORTED.CosmosT2IPredict2, {**videos.COSMOS, "image_model": "cosmos_predict2", "in_channels": 16, "out_channels": 16},
        (16, 1, 8, 8), 32,
    ),
    "Anima": (
        SUPPORTED.Anima, {**videos.ANIMA, "image_model": "anima", "in_channels": 16, "out_channels": 16}, (16, 1, 8, 8), 1024,
    ),
}  # fmt: skip


def built(name):
    """(model, latent shape). flow, eps and video of tiny.MODELS; sdxl; v and edm: eps with another model_sampling."""
    if name == "sdxl":
        return tiny.build_from(comfy.supported_models.SDXL, SDXL), (4, 8, 8)
    if name in tiny.MODELS:
        return tiny.build(name)
    model, shape = tiny.build("eps")
    kinds = {
        "v": (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION),
        "edm": (comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM),
    }
    model.add_object_patch("model_sampling", type("ModelSampling", kinds[name], {})(model.model.model_config))
    return model, shape


def lora_for(model, seed=0, targets="linear and convolutions"):
    """Of rank 2, with noise in both factors."""
    generator = torch.Generator().manual_seed(seed)
    lora = LoraSet.create(targets_of(model.model.diffusion_model, targets), rank=2, generator=generator)
    for adapter in lora.adapters:
        adapter.up.data.normal_(std=0.2, generator=generator)
    return lora


def prompt(seed, tokens=8, width=64, pooled=64, **extra):
    generator = torch.Generator().manual_seed(seed)
    extra = {"width": 64 * seed, "guidance": float(seed), **extra}
    extra["pooled_output"] = torch.randn(1, pooled, generator=generator)
    return [[torch.randn(1, tokens, width, generator=generator), extra]]


def batch_for(shape, tokens=(8, 8)):
    """(x, sigma, prompts) of items that differ in everything, with prompts of these lengths."""
    count = len(tokens)
    return tiny.noise_for(shape, range(count)), torch.linspace(0.7, 0.2, count), [prompt(1 + i, n) for i, n in enumerate(tokens)]


def denoised_by_core(model, x, sigma, prompts):
    """D of each item alone, as core's guider computes it while it samples."""
    found = []

    def ask(denoise, x_given, sigmas, extra_args=None, callback=None, disable=None):
        found.append(denoise(x[item], sigma[item], **extra_args).clone())
        return x_given

    for i, given in enumerate(prompts):
        item = slice(i, i + 1)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(given, given)
        guider.set_cfg(1.0)
        with torch.inference_mode():
            guider.sample(x[item] * 0, x[item] * 0, comfy.samplers.KSAMPLER(ask), torch.tensor([0.5, 0.0]), disable_pbar=True)
    return torch.cat(found)


def conditions(prompts):
    return Conditions.of(prompts)


def inference_tensors(model):
    """The model as loaders give it: its weights made within inference mode."""
    with torch.inference_mode():
        for module in model.model.diffusion_model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
    return model


def digest(model):
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


def assert_untouched(model, before):
    network = model.model.diffusion_model
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not [path for path, module in network.named_modules() if "forward" in vars(module)]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert comfy.model_management.in_training is False
