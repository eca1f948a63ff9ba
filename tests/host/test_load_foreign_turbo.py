"""LoRAs for few steps that others wrote, through Load Turbo LoRA on tiny models: recognised, and applied as core does."""

import folder_paths
import pytest
import tiny
import torch
from comfy_execution.graph import ExecutionBlocker
from comfyui_distillery.distill.formats import Profile, to_file, write
from comfyui_distillery.nodes import host_turbo, host_turbo_models
from comfyui_distillery.nodes.host_lora_formats import names_to_write
from comfyui_distillery.samplers.turbo import PROFILES
from training_cases import built, lora_for
from turbo_cases import at_timesteps, by_name, custom, latent_for, quick, stand_in, turbo


@pytest.fixture(autouse=True)
def loras(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors", ".pt"}))
    return tmp_path


@pytest.fixture(scope="module")
def sdxl():
    return stand_in("sdxl")


def tensors_for(model, dialect="kohya", targets="attention and mlp"):
    return to_file(lora_for(model, 0, targets), names_to_write(model, dialect), dialect)


def loaded(nodes, model, lora, strength=1.0, **more):
    """(MODEL, SAMPLER, SIGMAS, cfg, text, turbo_lora)"""
    return tiny.run(nodes["Distillery_LoadTurboLora"], model=model, lora=lora, strength=strength, **more)


def by_core(nodes, model, lora, strength):
    return nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, lora, strength)[0]


@pytest.mark.parametrize("dialect, strength", [("kohya", 1.0), ("diffusers", 0.5), ("core", 1.0)])
def test_the_same_as_core_s_loader_bit_for_bit_with_the_family_s_sampling(nodes, sdxl, loras, dialect, strength):
    model, shape = sdxl
    write(loras / "sdxl_lightning_4step_lora.safetensors", tensors_for(model, dialect), {})
    patched, sampler, sigmas, cfg, text, _ = loaded(nodes, model, "sdxl_lightning_4step_lora.safetensors", strength)
    levels, latent = at_timesteps(model, 999, 749, 499, 249), latent_for(shape)
    torch.testing.assert_close(sigmas, levels, rtol=1e-6, atol=0)
    core = by_core(nodes, model, "sdxl_lightning_4step_lora.safetensors", strength)
    ours = custom(nodes, patched, sampler, sigmas, cfg, latent)
    tiny.assert_same(ours, custom(nodes, core, by_name(nodes, "euler"), sigmas, 1.0, latent))
    assert not torch.allclose(ours, custom(nodes, model, sampler, sigmas, cfg, latent), rtol=1e-2)
    assert "SDXL-Lightning in 4 steps" in text and f"strength {strength:g}" in text and "OpenRAIL" in text


def test_the_strength_of_a_family_is_multiplied_in_and_its_shift_applied(nodes, loras):
    model, shape = stand_in("wan22")
    write(loras / "Wan21_CausVid_14B_T2V_lora.safetensors", tensors_for(model, "core"), {})
    profile = PROFILES["causvid-wan21"]
    patched, _, sigmas, cfg, text, _ = loaded(nodes, model, "Wan21_CausVid_14B_T2V_lora.safetensors", 0.5)
    assert patched.get_model_object("model_sampling").shift == profile.shift
    latent = latent_for(shape)
    core = by_core(nodes, model, "Wan21_CausVid_14B_T2V_lora.safetensors", 0.5 * profile.strength)
    given = by_name(nodes, "euler"), sigmas, cfg, latent
    tiny.assert_same(custom(nodes, patched, *given), custom(nodes, core, *given))
    assert f"strength {0.5 * profile.strength:g}" in text


def test_what_was_loaded_is_known_to_the_nodes_after_it(nodes, sdxl, loras):
    model, shape = sdxl
    write(loras / "sdxl_lightning_2step_lora.safetensors", tensors_for(model), {})
    patched, sampler, sigmas, cfg, *_ = loaded(nodes, model, "sdxl_lightning_2step_lora.safetensors")
    assert turbo(nodes, patched)[2].tolist() == sigmas.tolist() and len(sigmas) == 3
    expected = custom(nodes, patched, sampler, sigmas, cfg, latent_for(shape))
    made, text = quick(nodes, patched, shape)
    tiny.assert_same(made, expected)
    assert "sdxl_lightning_2step_lora.safetensors is for it" in text


def test_a_bundled_lora_is_known_to_the_nodes_after_it(nodes):
    model, _, _ = tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")
    patched, _, sigmas, cfg, *_ = loaded(nodes, model, "bundled: shapes-turbo-dit")
    after, named = turbo(nodes, patched), turbo(nodes, patched, "shapes-turbo-dit")
    assert after[0] is patched and after[2].tolist() == named[2].tolist() == sigmas.tolist() and after[3] == named[3] == cfg == 1
    assert turbo(nodes, patched, denoise=0.5)[2].tolist() == sigmas[2:].tolist()
    with pytest.raises(ValueError, match="profile is shapes-turbo-dit.*records how it is to be sampled"):
        loaded(nodes, model, "bundled: shapes-turbo-dit", profile="shapes-turbo-dit")
    with pytest.raises(ValueError, match="steps is 8.*was made for 4"):
        loaded(nodes, model, "bundled: shapes-turbo-dit", steps=8)


@pytest.mark.parametrize("name, sigmas", [("flow", (1.0, 0.6, 0.0)), ("eps", (14.5, 0.7, 0.0)), ("v", (14.5, 0.7, 0.0))])
def test_a_lora_of_one_s_own_is_known_after_it_on_any_model(nodes, name, sigmas):
    """Also on one that is of no base that profiles know."""
    model, shape = built(name)
    turbo_lora = host_turbo.made(lora_for(model), Profile(2, "euler", sigmas, 1.5), model, {}, "mine")
    patched, *_ = tiny.run(nodes["Distillery_ApplyTurboLora"], model=model, turbo_lora=turbo_lora, strength=1.0)
    after, _, levels, cfg, text = turbo(nodes, patched)
    assert after is patched and levels.tolist() == torch.tensor(sigmas).tolist() and cfg == 1.5
    assert "mine in 2 steps: the LoRA mine records it" in text
    assert "Nothing contradicts" in tiny.run(nodes["Distillery_TurboCheck"], model=patched, profile="auto", sigmas=levels, cfg=cfg)[5]
    with pytest.raises(ValueError, match="negative is not connected"):
        quick(nodes, patched, shape)


def test_a_folder_tells_what_a_name_does_not(nodes, sdxl, loras):
    """LCM, TCD and Flash are published as pytorch_lora_weights.safetensors."""
    (loras / "sdxl" / "lcm-lora-sdxl").mkdir(parents=True)
    listed = "sdxl/lcm-lora-sdxl/pytorch_lora_weights.safetensors"
    write(loras / listed, tensors_for(sdxl[0]), {})
    assert "LCM" in loaded(nodes, sdxl[0], listed)[4].splitlines()[1]


def test_a_pickled_file_is_loaded_as_core_does(nodes, sdxl, loras):
    model, shape = sdxl
    torch.save(tensors_for(model), loras / "sdxl_lightning_4step_lora.pt")
    patched, sampler, sigmas, cfg, *_ = loaded(nodes, model, "sdxl_lightning_4step_lora.pt")
    core = by_core(nodes, model, "sdxl_lightning_4step_lora.pt", 1.0)
    given = sampler, sigmas, cfg, latent_for(shape)
    tiny.assert_same(custom(nodes, patched, *given), custom(nodes, core, *given))


def test_at_strength_0_there_is_no_mark_and_no_shift(nodes, sdxl, loras):
    write(loras / "sdxl_lightning_4step_lora.safetensors", tensors_for(sdxl[0]), {})
    plain = loaded(nodes, sdxl[0], "sdxl_lightning_4step_lora.safetensors", strength=0.0)[0]
    demo, _, _ = tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")
    bundled = loaded(nodes, demo, "bundled: shapes-turbo-dit", strength=0.0)[0]
    video, _ = stand_in("wan22")
    write(loras / "Wan21_CausVid_14B_T2V_lora.safetensors", tensors_for(video, "core"), {})
    assert loaded(nodes, video, "Wan21_CausVid_14B_T2V_lora.safetensors", strength=0.0)[0] is video
    for model in (plain, bundled):
        assert host_turbo_models.carried(model) is None


def test_of_two_the_later_decides_and_says_so(nodes, sdxl, loras):
    for name in ("sdxl_lightning_4step_lora", "dmd2_sdxl_4step_lora"):
        write(loras / f"{name}.safetensors", tensors_for(sdxl[0]), {})
    first, *_, text, _ = loaded(nodes, sdxl[0], "sdxl_lightning_4step_lora.safetensors")
    assert "already" not in text
    second, *_, text, _ = loaded(nodes, first, "dmd2_sdxl_4step_lora.safetensors")
    assert "came with a turbo LoRA already, for SDXL-Lightning: the later decides how it is sampled, DMD2" in text
    assert host_turbo_models.carried(second).profile.key == "dmd2-sdxl"
    off, *_, text, _ = loaded(nodes, first, "dmd2_sdxl_4step_lora.safetensors", strength=0.0)
    assert host_turbo_models.carried(off).profile.key == "sdxl-lightning" and "already" not in text


def test_a_file_that_nothing_tells_of_needs_its_profile_chosen(nodes, sdxl, loras):
    model, _ = sdxl
    write(loras / "pretty.safetensors", tensors_for(model), {})
    with pytest.raises(ValueError, match=r"pretty\.safetensors has no sampling profile.*Choose profile: .*sdxl-lightning.*LoRA loader"):
        loaded(nodes, model, "pretty.safetensors")
    *_, text, _ = loaded(nodes, model, "pretty.safetensors", profile="sdxl-lightning", steps=8)
    assert "SDXL-Lightning in 8 steps: chosen" in text
    with pytest.raises(ValueError, match="steps is 3.*2, 4 or 8 steps"):
        loaded(nodes, model, "pretty.safetensors", profile="sdxl-lightning", steps=3)


def test_a_lora_for_another_base_is_refused_naming_both(nodes, sdxl, loras):
    """Its layers are of the published sizes, which is what tells a base."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {f"{name}.lora_down.weight": (4, 768), f"{name}.lora_up.weight": (320, 4), f"{name}.alpha": ()}
    write(loras / "sd15_lcm.safetensors", {key: torch.zeros(shape) for key, shape in shapes.items()}, {})
    for more in ({}, {"profile": "lcm-lora-sdxl"}):
        with pytest.raises(ValueError, match=r"made for Stable Diffusion 1\.5.*model is SDXL"):
            loaded(nodes, sdxl[0], "sd15_lcm.safetensors", **more)
    write(loras / "mine.safetensors", tensors_for(sdxl[0]), {})
    with pytest.raises(ValueError, match=r"(?s)SDXL.*Stable Diffusion 1\.5|Stable Diffusion 1\.5.*SDXL"):
        loaded(nodes, sdxl[0], "mine.safetensors", profile="lcm-lora-sd15")


def test_layers_that_do_not_fit_are_refused_and_what_is_left_out_is_said(nodes, sdxl, loras):
    model, _ = sdxl
    tensors = tensors_for(model)
    up = next(key for key in tensors if key.endswith("lora_up.weight"))
    given = {"lora": "mine.safetensors", "profile": "sdxl-lightning"}
    write(loras / "mine.safetensors", {**tensors, up: torch.zeros(len(tensors[up]) + 8, 2)}, {})
    with pytest.raises(ValueError, match=r"changes diffusion_model\..* it was made for another model"):
        loaded(nodes, model, **given)
    write(loras / "mine.safetensors", {"lora_unet_nothing.lora_up.weight": torch.zeros(4, 4)}, {})
    with pytest.raises(ValueError, match="has no layer that model"):
        loaded(nodes, model, **given)
    more = {"lora_unet_nothing.lora_up.weight": torch.zeros(4, 4), "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}
    write(loras / "mine.safetensors", {**tensors, **more}, {})
    assert "1 tensors belong to no layer of this model" in loaded(nodes, model, **given)[4]


def test_turbo_lora_of_a_plain_file_works_and_of_another_stops_only_what_wants_it(nodes, sdxl, loras):
    model, shape = sdxl
    tensors = tensors_for(model)
    write(loras / "sdxl_lightning_4step_lora.safetensors", tensors, {})
    patched, _, sigmas, cfg, _, lora = loaded(nodes, model, "sdxl_lightning_4step_lora.safetensors")
    again = tiny.run(nodes["Distillery_ApplyTurboLora"], model=model, turbo_lora=lora, strength=1.0)
    given = by_name(nodes, "euler"), sigmas, cfg, latent_for(shape)
    tiny.assert_same(custom(nodes, again[0], *given), custom(nodes, patched, *given))
    bias = {"lora_unet_out_2.diff_b": torch.zeros(4)}
    write(loras / "sdxl_lightning_4step_lora.safetensors", {**tensors, **bias}, {})
    *_, blocked = loaded(nodes, model, "sdxl_lightning_4step_lora.safetensors")
    assert isinstance(blocked, ExecutionBlocker) and "only plain LoRAs" in blocked.message
