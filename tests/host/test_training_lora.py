"""A LoraSet in the graph at once, against core's loader on its file."""

import folder_paths
import pytest
import torch
from comfyui_distillery.distill.lora import LoraSet
from comfyui_distillery.nodes.host_lora import as_patches, core_state
from safetensors.torch import load_file, save_file
from training_cases import batch_for, built, denoised_by_core, lora_for


@pytest.fixture()
def loader(nodes, tmp_path, monkeypatch):
    """load(state, model, strength): through a file and core's LoraLoaderModelOnly."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))

    def load(state, model, strength):
        save_file(state, tmp_path / "turbo.safetensors")
        return nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, "turbo.safetensors", strength)[0]

    return load


@pytest.mark.parametrize("name", ["flow", "eps", "video", "sdxl"])
@pytest.mark.parametrize("dtype, strength", [(torch.float32, 1.0), (torch.bfloat16, 0.6), (torch.float16, -0.3)])
def test_a_lora_used_at_once_is_bit_for_bit_its_file_loaded_by_core(loader, name, dtype, strength):
    model, shape = built(name)
    lora = lora_for(model).to(dtype)
    case = batch_for(shape)
    at_once = denoised_by_core(as_patches(lora, model, strength), *case)
    loaded = denoised_by_core(loader(core_state(lora), model, strength), *case)
    assert torch.equal(at_once, loaded)
    assert not torch.allclose(at_once, denoised_by_core(model, *case), rtol=1e-3)


def test_its_file_gives_the_set_back(loader, tmp_path):
    model, _ = built("flow")
    lora = lora_for(model)
    loader(core_state(lora), model, 1.0)
    state = {key.removeprefix("diffusion_model."): value for key, value in load_file(tmp_path / "turbo.safetensors").items()}
    again = LoraSet.from_state(state)
    assert {path: (a.rank, a.alpha) for path, a in again.items()} == {path: (a.rank, a.alpha) for path, a in lora.items()}
    assert all(torch.equal(again[path].weight(), adapter.weight()) for path, adapter in lora.items())


def test_a_lora_of_another_model_is_refused():
    with pytest.raises(ValueError, match="made for another model"):
        as_patches(lora_for(built("eps")[0]), built("flow")[0])
