"""Bases as ComfyUI keeps large models: in fp8, quantised layer by layer, partly offloaded. What they teach, and that nothing moves."""

import json

import folder_paths
import pytest
import tiny
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfyui_distillery.distill.formats import difference
from comfyui_distillery.nodes import host_distill, host_turbo
from comfyui_distillery.nodes import host_distill_jobs as jobs
from comfyui_distillery.nodes import host_distill_models as models
from comfyui_distillery.nodes.host_distill_live import Live
from comfyui_distillery.nodes.host_lora import as_patches
from comfyui_distillery.nodes.host_lora_formats import fingerprint_of
from safetensors.torch import save_file
from test_distill_nodes import bank, distil, recipe
from training_cases import lora_for

KINDS = {  # format of the file's matrices, UNETLoader's weight_dtype, tolerance: int8 rounds its inputs too
    "fp8": (None, "fp8_e4m3fn", 1e-4), "fp8 fast": (None, "fp8_e4m3fn_fast", 1e-4), "scaled fp8": ("scaled_fp8", "default", 1e-4),
    "mixed fp8": ("float8_e4m3fn", "default", 1e-4), "mixed nvfp4": ("nvfp4", "default", 1e-4),
    "mixed int8": ("int8_tensorwise", "default", 3e-2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    return tmp_path / "distillery"


def quantised(state, kind):
    """The state of a Flux with the matrices of its blocks quantised: as core writes it, or as scaled fp8 came before that."""
    if kind is None:
        return state
    made = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if kind == "scaled_fp8" else {}
    for key, weight in state.items():
        if weight.ndim != 2 or "_blocks." not in key:
            made[key] = weight
        elif kind == "scaled_fp8":
            scale = weight.abs().max() / 448
            made |= {key: (weight / scale).to(torch.float8_e4m3fn), key.removesuffix("weight") + "scale_weight": scale}
        else:
            made |= QuantizedTensor.from_float(weight, QUANT_ALGOS[kind]["comfy_tensor_layout"]).state_dict(key)
            settings = json.dumps({"format": kind}).encode()
            made[key.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(settings), dtype=torch.uint8)
    return made


def loaded(nodes, folder, kind, weight_dtype):
    """(model, latent shape): a tiny Flux as core's loader gives it within a node."""
    plain, shape = tiny.build("flow")
    state = {key: value.detach().clone() for key, value in plain.model.diffusion_model.state_dict().items()}
    save_file(quantised(state, kind), folder / "base.safetensors")
    with torch.inference_mode():
        return nodes["UNETLoader"]().load_unet("base.safetensors", weight_dtype)[0], shape


def in_full(model):
    """A model whose weights are those numbers in float32."""
    plain, _ = tiny.build("flow")
    given = dict(model.model.diffusion_model.named_parameters())
    for name, parameter in plain.model.diffusion_model.named_parameters():
        value = given[name].data
        parameter.data = (value.dequantize() if isinstance(value, QuantizedTensor) else value).float().clone()
    return plain


def stored(model):
    """Every byte of a network."""
    return {name: value.detach().clone().contiguous().view(torch.uint8) if value.ndim else value.clone()
            for name, value in model.model.diffusion_model.state_dict().items()}  # fmt: skip


def history(output, name):
    return jobs.counters_of(output / "runs" / name)[1]["history"]


@pytest.mark.parametrize("kind, weight_dtype, tolerance", KINDS.values(), ids=KINDS)
def test_a_quantised_base_teaches_what_the_same_numbers_teach_in_full(nodes, output, tmp_path, kind, weight_dtype, tolerance):
    model, shape = loaded(nodes, tmp_path, kind, weight_dtype)
    before = stored(model)
    student, turbo, *_ = distil(nodes, model, shape, name="small")
    after = stored(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    distil(nodes, in_full(model), shape, name="full")
    for small, full in zip(history(output, "small"), history(output, "full"), strict=True):
        for name in ("loss", "gradient", "gradient_shares"):
            assert small[name] == pytest.approx(full[name], rel=tolerance)
    noise = tiny.noise_for(shape, [1])
    ours, base = (tiny.sample(each, noise, cfg=1.0) for each in (student, model))
    assert not torch.equal(ours, base) and all(adapter.up.any() for adapter in turbo.lora.adapters)
    tiny.assert_same(tiny.sample(model, noise, cfg=1.0), base)  # core can still use it, with and without the LoRA


@pytest.mark.parametrize("kind, weight_dtype", [(None, "fp8_e4m3fn"), ("float8_e4m3fn", "default"), ("nvfp4", "default")])
def test_a_lora_is_told_from_one_for_the_quantised_form_and_may_be_used_on_it(nodes, tmp_path, kind, weight_dtype):
    plain, shape = tiny.build("flow")
    model, _ = loaded(nodes, tmp_path, kind, weight_dtype)
    assert "its weights differ by" in difference(fingerprint_of(plain), fingerprint_of(model))
    exact, found = fingerprint_of(in_full(model)), fingerprint_of(model)
    assert found == {**exact, "weights": {name: pytest.approx(values, rel=1e-5) for name, values in exact["weights"].items()}}
    _, turbo, *_ = distil(nodes, plain, shape)
    with pytest.raises(ValueError, match=r"its weights differ by \d+\.\d%.*turn on other_checkpoints"):
        host_turbo.applied(model, turbo)
    patched, noise = host_turbo.applied(model, turbo, 100.0, other_checkpoints=True), tiny.noise_for(shape, [1])
    assert not torch.allclose(tiny.sample(patched, noise), tiny.sample(model, noise), rtol=1e-2)


def test_a_run_that_is_exported_says_how_its_base_was_loaded(nodes, output, tmp_path):
    model, shape = loaded(nodes, tmp_path, None, "fp8_e4m3fn_fast")
    given = {"goal": "guidance_free", "quality": "draft", "cfg": 2.0, "steps": 1, "minutes": 0.0, "memory": "plenty", "seed": 0, "name": "out"}
    with torch.inference_mode():
        tiny.run(nodes["Distillery_ExportRun"], model=model, prompts=bank(), latent={"samples": torch.zeros(1, *shape)}, recipe=recipe(), **given)
        reference = jobs.read_info(output / "runs" / "out")["model"]
        again, _ = models.load(reference)
    assert reference["options"] == {"dtype": "float8_e4m3fn", "fp8_optimizations": True}
    assert fingerprint_of(again) == fingerprint_of(model) and models.reference_of(again) == reference


@pytest.mark.parametrize("kind", [None, "float8_e4m3fn"])
@pytest.mark.parametrize("patched", [False, True])
def test_what_core_offloads_meanwhile_changes_nothing(nodes, tmp_path, kind, patched):
    """Another model asks for memory in the middle of a run: core takes half of the layers off, and patches them as they are used.

    Quantised ones that it patches so are not rounded again, as those that it patches in place are.
    """
    tolerance = 0.03 if patched and kind else 1e-3
    model, shape = loaded(nodes, tmp_path, kind, "default")
    if patched:
        model = as_patches(lora_for(model, 7, "attention and mlp"), model, 0.5)

    class Short(Live):
        offloaded = 0

        def stepped(self, row):
            super().stepped(row)
            if row["step"] == 2:
                with torch.inference_mode():
                    self.model.partially_unload(self.model.offload_device, self.model.model_size() // 2)
                self.offloaded = self.model.lowvram_patch_counter() if patched else self.model.model.model_lowvram

    def run(watch, folder):
        with torch.inference_mode():
            return host_distill.run(jobs.Job(model, bank(), recipe(run={"batch": 2, "steps": 5}), shape, False), tmp_path / folder, watch)

    noise, (whole, short) = tiny.noise_for(shape, [1]), (Live(model, False), Short(model, False))
    before = tiny.sample(model, noise)
    left, disturbed = run(whole, "left alone"), run(short, "disturbed")
    assert short.offloaded
    for a, b in zip(left.turbo.lora.adapters, disturbed.turbo.lora.adapters, strict=True):
        assert (a.weight() - b.weight()).norm() < tolerance * a.weight().norm()
    for a, b in zip(whole.history, short.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance) and a["gradient"] == pytest.approx(b["gradient"], rel=tolerance)
    assert (tiny.sample(model, noise) - before).norm() < tolerance * before.norm()
