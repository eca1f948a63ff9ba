"""Turbo LoRAs in the graph and in files, on tiny models in the real ComfyUI: the same bits, the recorded sampling, and refusals."""

import json
from dataclasses import replace

import comfy.samplers
import folder_paths
import pytest
import tiny
import torch
from comfyui_distillery.distill.formats import Profile, read, write
from comfyui_distillery.distill.formats.profile import PROFILE
from comfyui_distillery.measure import step_grid
from comfyui_distillery.nodes import host_turbo
from training_cases import built, lora_for

PROFILES = {  # of a flow model and of one that predicts noise
    "flow": Profile(2, "euler", (1.0, 0.6, 0.0), 1.0),
    "eps": Profile(3, "dpmpp_2m_sde", (14.5, 3.0, 0.75, 0.0), 1.5, strength=0.7, knobs={"eta": 0.3, "solver_type": "heun"}),
}
RECIPE = {"objective": "phased", "knobs": {"phases": 2}}


@pytest.fixture(autouse=True)
def loras(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    (tmp_path / "loras").mkdir()
    return tmp_path / "loras"


@pytest.fixture(scope="module", params=list(PROFILES))
def case(request):
    """(model, shape of a latent, TurboLora of attention and MLPs)."""
    model, shape = built(request.param)
    return model, shape, turbo_for(model, PROFILES[request.param])


@pytest.fixture(scope="module")
def flow():
    model, shape = built("flow")
    return model, shape, turbo_for(model, PROFILES["flow"])


def turbo_for(model, profile, seed=0, name="four steps"):
    return host_turbo.made(lora_for(model, seed, "attention and mlp"), profile, model, RECIPE, name, {"loss": 0.25})


def saved(nodes, model, turbo, name="turbo/mine", dialect="core", **more):
    """(path, TurboLora as the file has it)"""
    return tiny.run(nodes["Distillery_SaveTurboLora"], model=model, turbo_lora=turbo, name=name, dialect=dialect, **more)


def loaded(nodes, model, lora="turbo/mine.safetensors", strength=1.0, **more):
    return tiny.run(nodes["Distillery_LoadTurboLora"], model=model, lora=lora, strength=strength, **more)


def applied(nodes, model, turbo, strength=1.0):
    return tiny.run(nodes["Distillery_ApplyTurboLora"], model=model, turbo_lora=turbo, strength=strength)


def by_core(nodes, model, strength, lora="turbo/mine.safetensors"):
    return nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, lora, strength)[0]


def sampled(model, shape, sampler="euler", sigmas=None, cfg=1.0):
    return tiny.sample(model, tiny.noise_for(shape, [1]), sampler=sampler, steps=2, sigmas=sigmas, cfg=cfg)


def increments(lora):
    return {path: adapter.weight().double() for path, adapter in lora.items()}


# The same in the graph, in the file and in core


@pytest.mark.parametrize("dialect", ["core", "kohya"])
def test_the_graph_uses_bit_for_bit_what_core_makes_of_the_file(nodes, case, dialect):
    model, shape, turbo = case
    _, in_file = saved(nodes, model, turbo, dialect=dialect)
    strength = 0.8
    at_once = sampled(applied(nodes, model, turbo, strength)[0], shape)
    for other in (
        applied(nodes, model, in_file, strength)[0],
        loaded(nodes, model, strength=strength)[0],
        by_core(nodes, model, strength * turbo.profile.strength),
    ):
        tiny.assert_same(sampled(other, shape), at_once)
    assert not torch.allclose(at_once, sampled(model, shape), rtol=1e-2)


def test_diffusers_splits_fused_layers_and_core_makes_the_same_of_them(nodes, case):
    """Up to the rounding of float16: alpha is multiplied in, and Flux's q, k and v are separate layers."""
    model, shape, turbo = case
    saved(nodes, model, turbo, dialect="diffusers")
    ours = sampled(loaded(nodes, model)[0], shape)
    core = sampled(by_core(nodes, model, turbo.profile.strength), shape)
    assert (ours - core).norm() < 1e-5 * core.norm()
    assert (ours - sampled(applied(nodes, model, turbo)[0], shape)).norm() < 2e-3 * core.norm()


def test_strength_0_is_the_model_alone(nodes, flow):
    model, shape, turbo = flow
    tiny.assert_same(sampled(applied(nodes, model, turbo, 0.0)[0], shape), sampled(model, shape))


def test_the_self_test_notices_a_file_that_core_reads_differently(nodes, flow):
    model, _, turbo = flow
    path, in_file = saved(nodes, model, turbo)
    host_turbo.self_test(path, model, in_file.lora, 0.0)
    tensors, header = read(path)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    write(path, {**tensors, key: tensors[key] * 1.01}, header)
    with pytest.raises(ValueError, match=r"something else of diffusion_model\..*1\.0% off.*'core'"):
        host_turbo.self_test(path, model, in_file.lora, 2e-3)


# The profile


def test_the_recorded_sampling_comes_back(nodes, case):
    model, shape, turbo = case
    saved(nodes, model, turbo, licence="for research")
    patched, sampler, sigmas, cfg, text, again = loaded(nodes, model)
    profile = turbo.profile
    assert vars(again.profile) == vars(profile) and cfg == profile.cfg
    assert sigmas.tolist() == torch.tensor(profile.sigmas).tolist()
    for words in (f"{profile.steps} steps", profile.sampler, f"CFG {profile.cfg:g}", "phased", "loss: 0.25", "for research"):
        assert words in text
    by_name = comfy.samplers.ksampler(profile.sampler, dict(profile.knobs))
    expected = sampled(by_core(nodes, model, profile.strength), shape, by_name, sigmas, cfg)
    tiny.assert_same(sampled(patched, shape, sampler, sigmas, cfg), expected)


def test_a_sampler_of_this_pack_comes_back_with_its_knobs(nodes, flow):
    model, shape, turbo = flow
    ours = replace(turbo, profile=replace(turbo.profile, sampler="ghvb", knobs={"order": 1.5}))
    saved(nodes, model, ours, "ghvb")
    patched, sampler, sigmas, cfg, *_ = loaded(nodes, model, "ghvb.safetensors")
    expected = sampled(patched, shape, tiny.sampler(nodes, "ghvb", order=1.5), sigmas, cfg)
    tiny.assert_same(sampled(patched, shape, sampler, sigmas, cfg), expected)


def test_an_unknown_sampler_is_refused_by_name(nodes, flow):
    model, _, turbo = flow
    with pytest.raises(ValueError, match="'heunpp9', which neither this ComfyUI nor this pack has"):
        applied(nodes, model, replace(turbo, profile=replace(turbo.profile, sampler="heunpp9")))


# Files


def test_a_file_that_is_there_stays_unless_it_is_to_be_overwritten(nodes, flow, loras):
    model, _, turbo = flow
    other = turbo_for(model, turbo.profile, seed=1)
    paths = [saved(nodes, model, each)[0] for each in (turbo, other)]
    assert paths == [str(loras / "turbo" / name) for name in ("mine.safetensors", "mine-2.safetensors")]
    before = read(paths[0])[0]
    saved(nodes, model, other, overwrite=True)
    assert sorted(path.name for path in (loras / "turbo").iterdir()) == ["mine-2.safetensors", "mine.safetensors"]
    after = read(paths[0])[0]
    assert before.keys() == after.keys() and not all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["../mine", "/etc/mine", "", "mine.ckpt"])
def test_names_stay_in_the_loras_folder(nodes, flow, loras, name):
    with pytest.raises(ValueError, match="name is"):
        saved(nodes, *flow[::2], name)
    assert not list(loras.iterdir())


def test_a_file_without_a_profile_is_refused_with_the_remedy(nodes, flow, loras):
    model, _, turbo = flow
    path, _ = saved(nodes, model, turbo)
    tensors, header = read(path)
    write(path, tensors, {key: value for key, value in header.items() if key != PROFILE})
    with pytest.raises(ValueError, match=r"mine\.safetensors has no sampling profile.*Use ComfyUI's LoRA loader"):
        loaded(nodes, model)
    write(path, tensors, {**header, PROFILE: json.dumps({"steps": 2, "sampler": "euler", "sigmas": [1, 0], "cfg": 1})})
    with pytest.raises(ValueError, match="2 steps need 3"):
        loaded(nodes, model)
    with pytest.raises(ValueError, match="there is no such LoRA"):
        loaded(nodes, model, "gone.safetensors")


def test_a_lora_of_another_architecture_is_refused_naming_both(nodes, flow):
    model, _, turbo = flow
    saved(nodes, model, turbo)
    other, _ = built("eps")
    for attempt in (lambda: loaded(nodes, other), lambda: applied(nodes, other, turbo), lambda: saved(nodes, other, turbo, "x")):
        with pytest.raises(ValueError, match=r"made for another model: a FluxSchnell .* model is a SD15 .* architecture"):
            attempt()
    with pytest.raises(ValueError, match="another model"):
        loaded(nodes, other, other_checkpoints=True)


def test_another_checkpoint_is_refused_unless_it_is_asked_for(nodes, flow):
    model, shape, turbo = flow
    saved(nodes, model, turbo)
    fine_tuned, _ = built("flow")
    with torch.no_grad():
        for weight in fine_tuned.model.diffusion_model.parameters():
            weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=r"its weights differ by 1\d\.\d%.*other_checkpoints"):
        loaded(nodes, fine_tuned)
    patched = loaded(nodes, fine_tuned, other_checkpoints=True)[0]
    tiny.assert_same(sampled(patched, shape), sampled(by_core(nodes, fine_tuned, 1.0), shape))


# Merged and resized


def test_merging_adds_up_and_resizing_keeps_most(nodes, flow):
    model, _, turbo = flow
    other = replace(turbo_for(model, replace(turbo.profile, strength=0.5), seed=1), name="style")
    merge = {"turbo_lora": turbo, "other": other, "weight": 0.75, "other_weight": 2.0}
    (both,) = tiny.run(nodes["Distillery_MergeTurboLoras"], **merge, rank=0)
    ours, theirs, found = map(increments, (turbo.lora, other.lora, both.lora))
    for path, increment in found.items():
        expected = 0.75 * ours[path] + 2.0 * 0.5 * theirs[path]  # each at the strength it is to be used at
        assert (increment - expected).norm() < 1e-3 * expected.norm()  # float16
    assert both.profile == turbo.profile and "four steps at 0.75, style at 2" in applied(nodes, model, both)[4]
    smaller, text = tiny.run(nodes["Distillery_ResizeTurboLora"], turbo_lora=both, rank=2, energy=1.0)
    for path, increment in increments(smaller.lora).items():
        left, values, right = torch.linalg.svd(found[path].flatten(1), full_matrices=False)
        best = (left[:, :2] * values[:2]) @ right[:2]
        assert (increment.flatten(1) - best).norm() < 2e-3 * best.norm()
    assert "rank 2 to 2" in text
    (at_once,) = tiny.run(nodes["Distillery_MergeTurboLoras"], **merge, rank=2)
    assert {adapter.rank for _, adapter in at_once.lora.items()} == {2}


def test_loras_of_different_models_are_not_merged(nodes, flow):
    _, _, turbo = flow
    other = turbo_for(built("eps")[0], PROFILES["eps"], name="noise")
    with pytest.raises(ValueError, match=r"four steps, was made for a FluxSchnell .* noise, for a SD15"):
        tiny.run(nodes["Distillery_MergeTurboLoras"], turbo_lora=turbo, other=other, weight=1.0, other_weight=1.0, rank=0)


# Compare Steps


@pytest.fixture(scope="module")
def vae(nodes):
    return tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")[2]


def compared(nodes, vae, model, shape, student, **more):
    given = {
        "positive": tiny.prompt(1), "negative": tiny.prompt(2), "latent": {"samples": torch.zeros(2, *shape)}, "vae": vae, "seed": 3,
        "steps": "1, 2", "teacher_steps": 4, "teacher_cfg": 3.0, "undistilled": True, "student_cfg": 1.0, "sampler_name": "euler",
        "scheduler": "simple", "rows": 1, **more,
    }  # fmt: skip
    with torch.inference_mode():
        return tiny.run(nodes["Distillery_CompareSteps"], model=model, student=student, **given)


def test_compare_steps_measures_what_the_same_runs_by_hand_give(nodes, vae, flow):
    model, shape, turbo = flow
    grid, text, numbers, pictures = compared(nodes, vae, model, shape, turbo)
    rows = json.loads(numbers)
    assert [(row["by"], row["steps"], row["evaluations"]) for row in rows] == [
        ("teacher", 4, 8), ("student", 1, 1), ("student", 2, 2), ("undistilled", 1, 2), ("undistilled", 2, 4),
    ]  # fmt: skip
    noise = torch.randn(2, *shape, generator=torch.manual_seed(3))
    teacher = tiny.sample(model, noise, steps=4, cfg=3.0, seed=3)
    student = tiny.sample(host_turbo.applied(model, turbo), noise, sigmas=torch.tensor(turbo.profile.sigmas), cfg=1.0, seed=3)
    error = ((student - teacher).flatten(1).norm(dim=1) / teacher.flatten(1).norm(dim=1)).mean()
    assert rows[2]["latent_error"] == pytest.approx(float(error), rel=1e-4)
    assert rows[0]["latent_error"] == 0 and rows[0]["psnr"] == 100
    assert len(pictures) == 2 * 3 and grid.ndim == 4 and len(text.splitlines()) == 6


def test_a_model_as_its_own_student_is_its_teacher(nodes, vae, flow):
    model, shape, _ = flow
    *_, numbers, _ = compared(nodes, vae, model, shape, model, steps="4", student_cfg=3.0, undistilled=False)
    _, student = json.loads(numbers)
    assert (student["by"], student["latent_error"], student["psnr"], student["sharpness_ratio"]) == ("student", 0, 100, 1)


@pytest.mark.parametrize("steps", ["", "4, four", "0", "2.5", ", ".join("1" * 17)])
def test_steps_that_are_no_numbers_are_refused(nodes, flow, steps):
    model, shape, turbo = flow
    with pytest.raises(ValueError, match="steps holds"):
        compared(nodes, None, model, shape, turbo, steps=steps)


def test_the_grid_labels_each_picture_with_what_it_took():
    def made(by, steps, cfg, shift):
        return step_grid.Sampled(by, steps, cfg, steps * (1 if cfg == 1 else 2), 0.5, torch.ones(1, 4, 8, 8) + shift, torch.zeros(1, 32, 48, 3))

    others = [made("student", 1, 1.0, 0.25), made("student", 4, 1.0, 0.0), made("undistilled", 4, 3.0, 1.0)]
    figure = step_grid.plot(made("teacher", 20, 3.0, 0.0), others)
    assert [axis.get_title() for axis in figure.axes] == [
        "teacher, 20 steps, CFG 3\n40 evaluations, 0.50 s", "student, 1 step, CFG 1\n1 evaluations, 0.50 s, error 0.25",
        "student, 4 steps, CFG 1\n4 evaluations, 0.50 s", "teacher, 20 steps, CFG 3\n40 evaluations, 0.50 s",
        "undistilled, 4 steps, CFG 3\n8 evaluations, 0.50 s, error 1.00", "",
    ]  # fmt: skip
