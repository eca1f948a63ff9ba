"""LoRA files in diffusers: a tiny network of diffusers with core's weights, and the file's, gives what core's own loader gives.

What is compared is the networks' output, so a layer under a wrong name, or rows in a wrong order, cannot pass.
"""

import comfy.sd
import comfy.supported_models as supported
import comfy.utils
import pytest
import tiny
import tiny_image_networks as networks
import torch
from comfyui_distillery.distill import formats
from comfyui_distillery.distill.lora import LoraSet, adapter_for
from comfyui_distillery.nodes import host_lora_formats as host
from einops import rearrange
from test_lora_formats import build, layers

diffusers = pytest.importorskip("diffusers")


def sd1():
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip


def sdxl():
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
    )  # fmt: skip


def flux():
    return diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=1, attention_head_dim=128, num_attention_heads=1,
        joint_attention_dim=64, pooled_projection_dim=64,
    )  # fmt: skip


def sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=2, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=128,
        pooled_projection_dim=32, pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip


def z_image():
    from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

    network = diffusers.ZImageTransformer2DModel(
        dim=384, n_layers=3, n_refiner_layers=1, n_heads=12, n_kv_heads=12, cap_feat_dim=32, axes_dims=[8, 12, 12],
        axes_lens=[64, 64, 64],
    )  # fmt: skip
    network.t_embedder = TimestepEmbedder(256, mid_size=384)  # core's is as narrow as the network, up to Z-Image's own 1024
    return network


def qwen():
    return diffusers.QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=1, joint_attention_dim=32, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


def times(sigma, scale):
    return torch.full((2,), sigma * scale)


def packed(x):
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpacked(x):
    return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=4, p=2, q=2)


def run_sdxl(network, x, context, sizes):
    """``sizes`` goes to diffusers as numbers to embed; core takes them embedded, after the pooled text."""
    more = {"text_embeds": context[:, 0, :8], "time_ids": sizes}
    return network(x, times(0.6, 1000), context, added_cond_kwargs=more).sample


def core_sdxl(network, x, context, sizes):
    embedded = diffusers.models.embeddings.Timesteps(4, True, 0)(sizes.flatten()).reshape(2, -1)
    return network(x, times(0.6, 1000), context, y=torch.cat([context[:, 0, :8], embedded], 1))


def run_flux(network, x, context, y):
    place = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    return unpacked(network(packed(x), context, y, times(0.6, 1), place, torch.zeros(5, 3)).sample)


def run_z_image(network, x, context, _):
    return -torch.stack(network(list(x[:, :, None]), times(0.4, 1), list(context)).sample)[:, :, 0]


def run_qwen(network, x, context, _):
    mask = torch.ones(context.shape[:2], dtype=torch.bool)
    return unpacked(network(packed(x), context, mask, times(0.6, 1), [[(1, 4, 4)]] * 2).sample)


FAMILIES = {  # name: diffusers' network, core's table of its names; runs diffusers' and core's, of (network, x, context, y)
    "SD1": (
        sd1, comfy.utils.unet_to_diffusers,
        lambda network, x, context, _: network(x, times(0.6, 1000), context).sample,
        lambda network, x, context, _: network(x, times(0.6, 1000), context),
    ),
    "SDXL": (sdxl, comfy.utils.unet_to_diffusers, run_sdxl, core_sdxl),
    "Flux": (
        flux, comfy.utils.flux_to_diffusers, run_flux,
        lambda network, x, context, y: network(x, times(0.6, 1), context, y=y),
    ),
    "SD3": (
        sd3, comfy.utils.mmdit_to_diffusers,
        lambda network, x, context, y: network(x, context, y, times(0.6, 1000)).sample,
        lambda network, x, context, y: network(x, times(0.6, 1000), context=context, y=y),
    ),
    "Z-Image": (
        z_image, comfy.utils.z_image_to_diffusers, run_z_image,
        lambda network, x, context, _: network(x, times(0.6, 1), context, num_tokens=5),
    ),
    "Qwen-Image": (
        qwen, lambda config: {}, run_qwen,
        lambda network, x, context, _: network(x[:, :, None], times(0.6, 1), context)[:, :, 0],
    ),
}  # fmt: skip
WIDTHS = {"SD1": (4, 64, None), "SDXL": (4, 32, None), "Flux": (16, 64, 64), "SD3": (16, 32, 32)}  # x, context, y


def inputs(name):
    channels, width, pooled = WIDTHS.get(name, (16, 32, None))
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(shape, generator=generator) for shape in ((2, channels, 8, 8), (2, 5, width)))
    return x, context, torch.randn(2, pooled, generator=generator) if pooled else 8.0 * torch.arange(12.0).reshape(2, 6)


def in_diffusers(name, model):
    """diffusers' network with the weights of core's, by core's own table of names."""
    make, table = FAMILIES[name][:2]
    names, weights = table(model.model.model_config.unet_config), model.model.diffusion_model.state_dict()
    network, converted = make(), {}
    for theirs in network.state_dict():
        target = names.get(theirs, theirs)
        key, offset, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        weight = weights[key] if offset is None else weights[key].narrow(*offset)
        converted[theirs] = (function(weight) if function else weight).clone()
    network.load_state_dict(converted)
    return network.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(name, core's model, what both networks make of the inputs: functions without arguments but the network)."""
    name = request.param
    given = inputs(name)
    return name, build(name), *(lambda network, run=run: run(network, *given) for run in FAMILIES[name][2:])


def lora_of(model, dialect, alpha=3.0):
    """Of every layer, of several ranks, large enough that leaving out or misplacing any of it shows, with alphas to fold."""
    named = {part.path for part in host.names_to_write(model, dialect).values()}
    generator = torch.Generator().manual_seed(4)
    chosen = [(path, layer) for path, layer in layers(model).items() if path in named]
    lora = LoraSet({path: adapter_for(layer, 2 + i % 3, alpha, generator) for i, (path, layer) in enumerate(chosen)})
    for adapter in lora.adapters:
        adapter.up.data = 0.05 * torch.randn(adapter.up.shape, generator=generator)
    return lora


def file_of(model, dialect):
    return formats.to_file(lora_of(model, dialect), host.names_to_write(model, dialect), dialect)


def in_core(model, tensors, run):
    """What core's network makes of the inputs with this file in core's loader."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    patched.patch_model(device_to=torch.device("cpu"))
    made = run(model.model.diffusion_model)
    patched.unpatch_model()
    return made


def merge(network, tensors):
    """Add a file's increments to the weights of diffusers' network, under the names that the file gives."""
    if any(key.startswith("unet.") for key in tensors):
        tensors = diffusers.utils.convert_unet_state_dict_to_peft(tensors)
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        weight = network.get_submodule(key.partition(".")[2].removesuffix(".lora_A.weight")).weight
        added = tensors[key.replace("lora_A", "lora_B")].flatten(1) @ tensors[key].flatten(1)
        weight.data += added.reshape(weight.shape)


def apart(a, b):
    """Relative distance."""
    return float((a - b).norm() / b.norm())


@torch.inference_mode()
def test_the_file_does_in_diffusers_what_it_does_in_core(family):
    name, model, run_theirs, run_core = family
    network, tensors, plain = in_diffusers(name, model), file_of(model, "diffusers"), run_core(model.model.diffusion_model)
    assert apart(run_theirs(network), plain) < 1e-5  # the networks are the same
    merge(network, tensors)
    expected = in_core(model, tensors, run_core)
    assert apart(run_theirs(network), expected) < 1e-5
    assert apart(plain, expected) > 0.02
    assert torch.equal(run_core(model.model.diffusion_model), plain)


@torch.inference_mode()
def test_diffusers_own_loader_reads_the_file(family):
    pytest.importorskip("peft")
    name, model, run_theirs, run_core = family
    network, tensors = in_diffusers(name, model), file_of(model, "diffusers")
    network.load_lora_adapter(dict(tensors), prefix=next(iter(tensors)).partition(".")[0])
    assert apart(run_theirs(network), in_core(model, tensors, run_core)) < 1e-5


@pytest.mark.parametrize("family", ["SD1", "SDXL"], indirect=True)
@torch.inference_mode()
def test_diffusers_reads_the_kohya_file_of_a_unet(family):
    """Not of the tiny Flux: diffusers' converter has the widths of FLUX.1 written into it."""
    pytest.importorskip("peft")
    name, model, run_theirs, run_core = family
    network, tensors = in_diffusers(name, model), file_of(model, "kohya")
    mixin = diffusers.loaders.StableDiffusionXLLoraLoaderMixin
    state, alphas = mixin.lora_state_dict(dict(tensors), unet_config=network.config)
    network.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    assert apart(run_theirs(network), in_core(model, tensors, run_core)) < 1e-5


def flux_2():
    return diffusers.Flux2Transformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=1, mlp_ratio=2.0,
        joint_attention_dim=32, axes_dims_rope=(8, 8, 8, 8),
    )  # fmt: skip


def chroma():
    return diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=1, joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12), approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip


def aura_flow():
    return diffusers.AuraFlowTransformer2DModel(
        num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        caption_projection_dim=32, pos_embed_max_size=64,
    )  # fmt: skip


def pixart():
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=3, cross_attention_dim=32, caption_channels=32, sample_size=8,
    )  # fmt: skip


def krea_2():
    return diffusers.Krea2Transformer2DModel(
        num_layers=3, attention_head_dim=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=128,
        text_hidden_dim=32, num_text_layers=2, text_num_attention_heads=1, text_num_key_value_heads=1,
        text_intermediate_size=128, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


RELATIVES = {  # of which only names and shapes are checked: core's class, its network, diffusers' network
    "Flux 2": (supported.Flux2, {**networks.FLUX2, "image_model": "flux2"}, flux_2),
    "Chroma": (supported.Chroma, {**networks.CHROMA, "image_model": "chroma", "mlp_ratio": 4.0}, chroma),
    "AuraFlow": (supported.AuraFlow, networks.AURA, aura_flow),
    "PixArt": (supported.PixArtAlpha, networks.PIXART, pixart),
    "Krea 2": (supported.Krea2, networks.KREA, krea_2),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_every_name_is_a_layer_of_diffusers_of_that_shape(name):
    kind, settings, make = RELATIVES[name]
    tensors, network = file_of(tiny.build_from(kind, settings), "diffusers"), make()
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        weight = network.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight")).weight
        down, up = tensors[key], tensors[key.replace("lora_A", "lora_B")]
        assert weight.shape == up.shape[:1] + down.shape[1:], key
