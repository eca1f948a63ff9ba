"""LoRA files of every dialect through ComfyUI's own loader, on tiny genuine models: same layers, same effective weights."""

import logging

import comfy.lora
import comfy.sd
import comfy.supported_models as supported
import comfy.utils
import folder_paths
import pytest
import tiny
import tiny_image_networks as networks
import torch
from comfyui_distillery.distill import formats
from comfyui_distillery.distill.lora import LoraSet
from comfyui_distillery.nodes import host_lora_formats as host

SD3 = {**networks.SD3, "depth": 2, "num_blocks": 2, "x_block_self_attn_layers": [0], "context_embedder_config": {
    "target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}}}  # fmt: skip
Z_IMAGE = {
    **networks.ZIMAGE, "image_model": "lumina2", "dim": 384, "n_heads": 12, "n_kv_heads": 12, "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
}  # fmt: skip
MODELS = {  # name: core's class, its network
    "SD1": (supported.SD15, tiny.SD1),
    "SDXL": (supported.SDXL, networks.SDXL),
    "Flux": (supported.FluxSchnell, {**tiny.FLUX, "depth": 2}),
    "SD3": (supported.SD3, SD3),
    "Z-Image": (supported.ZImage, Z_IMAGE),
    "Qwen-Image": (supported.QwenImage, {**networks.QWEN, "image_model": "qwen_image"}),
}


def build(name):
    model = tiny.build_from(*MODELS[name])
    for buffer in model.model.diffusion_model.buffers():
        buffer.normal_(generator=torch.Generator().manual_seed(1))  # SD3's positions, which a checkpoint holds
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return build(request.param)


def layers(model):
    """{path: module} of all that a LoRA can change."""
    network = model.model.diffusion_model
    return {path: module for path, module in network.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}


def lora_of(model, dialect="core", rank=4, alpha=2.0, paths=None):
    """A LoRA of small whole numbers, which float32 adds exactly, on every layer that the dialect has a name for."""
    generator = torch.Generator().manual_seed(3)
    named = {part.path for part in host.names_to_write(model, dialect).values()}
    chosen = {path: layer for path, layer in layers(model).items() if path in (paths or named)}
    lora = LoraSet.create(chosen, rank, alpha)
    for adapter in lora.adapters:
        for weight in (adapter.down, adapter.up):
            weight.data = torch.randint(-4, 5, weight.shape, generator=generator).float()
    return lora


def applied(model, tensors, caplog):
    """{key of the base's weight: what core's loader adds to it}."""
    with caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    assert not caplog.records
    weights = model.model.state_dict()
    return {key: comfy.lora.calculate_weight(own, torch.zeros_like(weights[key]), key) for key, own in patched.patches.items()}


@pytest.mark.parametrize("dialect", formats.DIALECTS)
def test_core_adds_the_same_to_the_same_layers_whatever_the_dialect(model, dialect, tmp_path, caplog):
    lora = lora_of(model, dialect)
    formats.write(tmp_path / "a.safetensors", formats.to_file(lora, host.names_to_write(model, dialect), dialect), {})
    added = applied(model, comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True), caplog)
    assert added.keys() == {f"diffusion_model.{path}.weight" for path in lora.paths}
    for path, adapter in lora.items():
        assert torch.equal(added[f"diffusion_model.{path}.weight"], adapter.weight()), path


@pytest.mark.parametrize("dialect", formats.DIALECTS)
def test_what_was_written_is_read_back_bit_for_bit(model, dialect):
    """In "diffusers" too, where alpha is the rank."""
    lora = lora_of(model, dialect, alpha=None)
    tensors = formats.to_file(lora, host.names_to_write(model, dialect), dialect)
    shuffled = {key: tensors[key] for key in sorted(tensors)}  # as safetensors may give them
    assert_same_lora(formats.from_file(shuffled, host.names_to_read(model)), lora)


def assert_same_lora(read, lora):
    state, expected = read.state(), lora.state()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dialect", formats.DIALECTS)
def test_core_loads_all_of_it_says_the_check(model, dialect):
    lora = lora_of(model, dialect)
    tensors = formats.to_file(lora, host.names_to_write(model, dialect), dialect)
    host.check_loads(model, tensors, lora)
    key = next(key for key in tensors if "lora_up" in key or "lora_B" in key or "lora.up" in key)
    with pytest.raises(ValueError, match=r"would not apply"):
        host.check_loads(model, {"nowhere." + name if name == key else name: tensor for name, tensor in tensors.items()}, lora)


def test_separately_trained_parts_of_a_fused_layer_are_read_as_core_applies_them(caplog):
    """A file from diffusers has a down of its own for each of q, k and v, and need not have all three."""
    model = build("Flux")
    generator = torch.Generator().manual_seed(5)
    tensors, q, k = {}, "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"
    parts = ((q, 128, 2), (k, 128, 3), ("single_transformer_blocks.0.proj_mlp", 512, 2), ("norm_out.linear", 256, 2))
    for name, rows, rank in parts:
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randint(-4, 5, (rank, 128), generator=generator).float()
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randint(-4, 5, (rows, rank), generator=generator).float()
    tensors[f"transformer.{k}.alpha"] = torch.tensor(6.0)
    lora = formats.from_file(tensors, host.names_to_read(model))
    added = applied(model, tensors, caplog)
    assert list(lora.paths) == ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "final_layer.adaLN_modulation.1"]
    assert lora["double_blocks.0.img_attn.qkv"].rank == 5
    for path, adapter in lora.items():
        assert torch.equal(added[f"diffusion_model.{path}.weight"], adapter.weight()), path


def test_the_names_of_peft_are_read_for_a_unet():
    """Which core does not: it knows the older names only."""
    model = build("SD1")
    lora = lora_of(model, "diffusers", alpha=None)
    tensors = formats.to_file(lora, host.names_to_write(model, "diffusers"), "diffusers")
    peft = {}
    for key, tensor in tensors.items():
        name = key.replace(".processor.", ".").replace("to_out_lora", "to_out.0_lora").replace("_lora.", ".lora.")
        peft[name.replace("lora.down", "lora_A").replace("lora.up", "lora_B")] = tensor
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight" in peft
    assert_same_lora(formats.from_file(peft, host.names_to_read(model)), lora)


def test_names_that_a_dialect_lacks_are_refused_by_name():
    wan = tiny.build("video")[0]
    with pytest.raises(ValueError, match=r"'diffusers', and the names .* WAN21 are not known .* 'core'"):
        host.names_to_write(wan, "diffusers")
    lumina = tiny.build_from(supported.Lumina2, {**networks.LUMINA, "image_model": "lumina2"})
    with pytest.raises(ValueError, match="Lumina2"):
        host.names_to_write(lumina, "diffusers")
    narrow = tiny.build_from(supported.FluxSchnell, {**tiny.FLUX, "mlp_ratio": 2.0})  # core's names are for a ratio of 4
    with pytest.raises(ValueError, match=r"layer single_blocks.0.linear1, 640 rows, has no name"):
        formats.to_file(lora_of(narrow), host.names_to_write(narrow, "diffusers"), "diffusers")
    flux_2 = tiny.build_from(supported.Flux2, {**networks.FLUX2, "image_model": "flux2"})
    lora = lora_of(flux_2, paths=["single_stream_modulation.lin"])
    assert host.widest_dialect(flux_2, lora) == host.widest_dialect(wan, lora) == host.widest_dialect(lumina, lora) == "core"
    with pytest.raises(ValueError, match=r"layer single_stream_modulation.lin, 96 rows, has no name in .* 'diffusers'"):
        formats.to_file(lora, host.names_to_write(flux_2, "diffusers"), "diffusers")


def test_the_widest_dialect_has_names_for_all_layers(model):
    lora = lora_of(model)
    dialect = host.widest_dialect(model, lora)
    assert dialect == ("kohya" if "num_res_blocks" in model.model.model_config.unet_config else "diffusers")
    formats.to_file(lora, host.names_to_write(model, dialect), dialect)


def test_names_in_files_are_those_that_others_write():
    """A few of each, as kohya's sd-scripts and diffusers' trainers write them."""
    written = {name: set(host.names_to_write(build(name), "kohya")) for name in ("SD1", "SDXL", "Flux", "SD3")}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0" in written["SD1"]
    assert "lora_unet_up_blocks_1_resnets_0_time_emb_proj" in written["SD1"]
    assert "lora_unet_input_blocks_3_1_transformer_blocks_1_ff_net_0_proj" in written["SDXL"]
    assert "lora_unet_double_blocks_1_img_attn_qkv" in written["Flux"]
    assert "lora_unet_joint_blocks_0_x_block_attn_qkv" in written["SD3"]
    unet, flux = (set(host.names_to_write(build(name), "diffusers")) for name in ("SDXL", "Flux"))
    assert {"unet.add_embedding.linear_1", "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out"} <= unet
    assert {"transformer.single_transformer_blocks.0.proj_mlp", "transformer.single_transformer_blocks.0.proj_out"} <= flux
    assert not [name for name in flux if "to_qkv_mlp_proj" in name or "linear_in" in name]


def test_the_fingerprint_is_of_the_checkpoint_not_of_patches_or_dtype():
    model = build("Flux")
    recorded = host.fingerprint_of(model)
    assert recorded["architecture"] == "FluxSchnell"
    tensors = formats.to_file(lora_of(model), host.names_to_write(model, "core"), "core")
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    patched.patch_model(device_to=torch.device("cpu"))
    assert host.fingerprint_of(patched) == recorded
    patched.unpatch_model()
    half = tiny.build_from(*MODELS["Flux"], torch.bfloat16)
    assert formats.difference(recorded, host.fingerprint_of(half)) is None
    network = model.model.diffusion_model
    for parameter in network.parameters():
        parameter.data += 0.02 * parameter.data.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(8))
    assert "its weights differ by" in formats.difference(recorded, host.fingerprint_of(model))


def test_names_stay_in_comfyuis_folder(tmp_path):
    before = list(folder_paths.get_folder_paths("loras"))
    folder_paths.add_model_folder_path("loras", str(tmp_path), is_default=True)
    try:
        path = host.new_lora_path("turbo/four steps")
        assert path == tmp_path / "turbo" / "four steps.safetensors"
        with pytest.raises(ValueError, match=r"name is 'turbo/four steps': there is no such LoRA"):
            host.lora_path("turbo/four steps")
        formats.write(path, {"a": torch.zeros(1)}, {})
        assert host.lora_path("turbo/four steps.safetensors") == str(path)
        with pytest.raises(ValueError, match=r"would leave"):
            host.new_lora_path("../elsewhere")
    finally:
        folder_paths.folder_names_and_paths["loras"][0][:] = before
