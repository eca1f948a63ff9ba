"""The nodes that train, on tiny models in the real ComfyUI: what they learn, what they keep, and what they refuse."""

import json

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import pytest
import tiny
import torch
from comfyui_distillery.distill.checkpoints import Checkpoints
from comfyui_distillery.distill.goals import GOALS
from comfyui_distillery.distill.recipe import Recipe
from comfyui_distillery.nodes import host_distill
from comfyui_distillery.nodes import host_distill_jobs as jobs
from comfyui_distillery.nodes.host_distill_live import Live
from comfyui_distillery.nodes.host_prompt_bank import PromptBank, alike, load_bank, save_bank
from safetensors.torch import load_file
from training_cases import assert_untouched, built, digest, inference_tensors

STEPS = 6
SETTINGS = {"quality": "normal", "cfg": 3.0, "steps": STEPS, "minutes": 0.0, "memory": "plenty", "seed": 3, "name": ""}


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / "distillery"


@pytest.fixture(scope="module")
def flow():
    model, shape = built("flow")
    return inference_tensors(model), shape


def bank(count=3, latents=None):
    return PromptBank.of([tiny.prompt(seed) for seed in range(1, 1 + count)], [tiny.prompt(9)], latents=latents)


def recipe(objective="guidance", **more):
    """One that is done in a blink."""
    sections = {
        "data": {"count": 6, "teacher_steps": 2}, "lora": {"rank": 2}, "optimiser": {"lr": 1e-3, "warmup": 0, "ema": 0.9},
        "run": {"batch": 2, "save_every": 4},
    }  # fmt: skip
    return Recipe(objective, **{**sections, **more})


def distil(nodes, model, shape, prompts=None, **more):
    given = {**SETTINGS, "goal": "guidance_free", "recipe": recipe(), "latent": {"samples": torch.zeros(1, *shape)}, **more}
    with torch.inference_mode():
        return tiny.run(nodes["Distillery_Distill"], model=model, prompts=prompts or bank(), **given)


def folders(output):
    return sorted(path.parent for path in (output / "runs").rglob("job.json"))


def same(a, b):
    a, b = a.lora.state(), b.lora.state()
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("goal", GOALS)
def test_every_goal_teaches_a_lora_and_leaves_the_base_as_it_was(nodes, flow, goal):
    model, shape = flow
    before, plan = digest(model), GOALS[goal].recipe
    small = recipe(plan.objective, knobs=plan.knobs | ({"substeps": 2} if "substeps" in plan.knobs else {}), profile=plan.profile)
    student, turbo, _, sigmas, cfg, curves, text = distil(nodes, model, shape, goal=goal, recipe=small)
    assert_untouched(model, before)
    assert all(adapter.up.any() for adapter in turbo.lora.adapters)
    steps = {"guidance_free": 20, "8_steps": 8, "4_steps": 4, "2_steps": 2, "1_step": 1}[goal]
    assert len(sigmas) == steps + 1 and cfg == 1.0 and turbo.profile.steps == steps
    noise = tiny.noise_for(shape, [1])
    assert not torch.equal(tiny.sample(student, noise, sigmas=sigmas, cfg=1.0), tiny.sample(model, noise, sigmas=sigmas, cfg=1.0))
    assert curves.shape[0] == 1 and f"{STEPS} steps in" in text


def test_what_goals_and_memory_ask_for_reaches_the_recipe(nodes, flow):
    model, shape = flow
    given = {**SETTINGS, "goal": "4_steps", "steps": 0, "quality": "draft", "memory": "8 GB", "latent": {"samples": torch.zeros(1, *shape)}}
    del given["name"]
    from comfyui_distillery.nodes.distill import job_of

    job = job_of(model, bank(), recipe=None, turbo_lora=None, **given)
    assert job.recipe.taught_steps == 4 and job.recipe.run["steps"] == GOALS["4_steps"].recipe.run["steps"] // 4
    assert job.recipe.knobs["scale"] == job.recipe.data["teacher_scale"] == 3.0 and job.recipe.run["seed"] == 3
    assert (job.checkpointing, job.recipe.run["micro_batch"], job.recipe.lora["rank"], job.recipe.lora["dtype"]) == (True, 1, 8, "bfloat16")


def test_the_same_inputs_are_trained_once(nodes, flow, output):
    model, shape = flow
    first = distil(nodes, model, shape)
    (folder,) = folders(output)
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("state-*")}
    again = distil(nodes, model, shape)
    assert same(first[1], again[1]) and "nothing was trained now" in again[-1]
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.glob("state-*")}
    assert folders(output) == [folder] and json.loads((folder / "job.json").read_text())["version"] == 1


def test_the_file_in_the_folder_is_the_lora_for_core(nodes, flow, output):
    model, shape = flow
    student, *_ = distil(nodes, model, shape, name="mine/first")
    file = output / "runs" / "mine" / "first" / "first.safetensors"
    loaded = comfy.sd.load_lora_for_models(model, None, load_file(file), 1.0, 0.0)[0]
    noise = tiny.noise_for(shape, [1])
    tiny.assert_same(tiny.sample(loaded, noise, cfg=1.0), tiny.sample(student, noise, cfg=1.0))


class Interrupt(Live):
    """The user interrupts in this step."""

    def __init__(self, model, step):
        super().__init__(model, pictures=False)
        self.step = step

    def stepped(self, row):
        if row["step"] == self.step:
            comfy.model_management.interrupt_current_processing()
        super().stepped(row)


def job_for(flow, **more):
    model, shape = flow
    return jobs.Job(model, bank(), recipe(run={"batch": 2, "steps": STEPS, "save_every": 4, "seed": 3}, **more), shape, False)


def interrupted(job, folder, step):
    with torch.inference_mode(), pytest.raises(comfy.model_management.InterruptProcessingException):
        host_distill.run(job, folder, Interrupt(job.model, step))


def whole(job, folder):
    with torch.inference_mode():
        return host_distill.run(job, folder, Live(job.model))


@pytest.mark.parametrize("objective", ["guidance", "reflow"])
@pytest.mark.parametrize("step", [1, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(flow, tmp_path, objective, step):
    job = job_for(flow, objective=objective)
    uninterrupted, before = whole(job, tmp_path / "whole"), digest(job.model)
    folder = tmp_path / "parts"
    interrupted(job, folder, step)
    assert_untouched(job.model, before)
    assert Checkpoints(folder).steps() == [step]
    kept = load_file(folder / "lora.safetensors")
    written = load_file(folder / "parts.safetensors")
    for key, value in kept.items():
        theirs = written[f"diffusion_model.{key}"]
        assert torch.equal(theirs, value.to(theirs.dtype))  # in half precision, as files are
    done = whole(job, folder)
    assert done.trained == STEPS - step and same(done.turbo, uninterrupted.turbo)
    rows = [[{**row, "seconds": 0} for row in each.result.counters.history] for each in (done, uninterrupted)]
    assert rows[0] == rows[1] and len(rows[0]) == STEPS
    for row in rows[0]:
        assert row["gradient_shares"].keys() == {"attention", "feed-forward"}
        assert sum(row["gradient_shares"].values()) == pytest.approx(1) and sum(row["loss_parts"].values()) == pytest.approx(row["loss"])


def test_an_interruption_while_the_teacher_works_keeps_its_latents(flow, tmp_path):
    class Early(Live):
        def made(self, number, count):
            super().made(number, count)
            comfy.model_management.interrupt_current_processing()

    job = job_for(flow)
    more = jobs.replace(job, recipe=jobs.replace(job.recipe, data={**job.recipe.data, "count": 20}))
    with torch.inference_mode(), pytest.raises(comfy.model_management.InterruptProcessingException):
        host_distill.run(more, tmp_path / "run", Early(job.model))
    comfy.model_management.interrupt_current_processing(False)

    numbers = []

    class Count(Live):
        def made(self, number, count):
            numbers.append(number)

    with torch.inference_mode():
        done = host_distill.run(more, tmp_path / "run", Count(job.model))
    assert numbers == [8, 12, 16, 20] and done.trained == STEPS


def test_runs_share_the_teachers_latents(nodes, flow, output):
    model, shape = flow
    distil(nodes, model, shape)
    made = {path: path.stat().st_mtime_ns for path in (output / "teacher").rglob("pairs-*")}
    distil(nodes, model, shape, recipe=recipe(optimiser={"lr": 2e-3}))
    assert made == {path: path.stat().st_mtime_ns for path in (output / "teacher").rglob("pairs-*")}
    assert len(folders(output)) == 2
    distil(nodes, model, shape, cfg=1.0, recipe=recipe(data={"count": 6, "teacher_steps": 3}))
    assert len(list((output / "teacher").iterdir())) == 2


def test_continue_goes_on_to_more_steps_and_finishes_what_was_exported(nodes, flow, output):
    model, shape = flow
    given = {**SETTINGS, "goal": "guidance_free", "recipe": recipe(), "latent": {"samples": torch.zeros(1, *shape)}, "name": "out"}
    with torch.inference_mode():
        (text,) = tiny.run(nodes["Distillery_ExportRun"], model=model, prompts=bank(), **given)
        assert f"-m tools.distill {output / 'runs' / 'out'}" in text and not list((output / "runs" / "out").glob("state-*"))
        first = tiny.run(nodes["Distillery_Continue"], model=model, run="out", steps=0)
        assert same(first[1], distil(nodes, model, shape, name="other")[1])
        more = tiny.run(nodes["Distillery_Continue"], model=model, run="out", steps=STEPS + 3)
    assert f"Gone on with after step {STEPS}" in more[-1] and not same(first[1], more[1])


def test_a_lora_can_be_begun_from(nodes, flow):
    model, shape = flow
    _, first, *_ = distil(nodes, model, shape)
    _, second, *_ = distil(nodes, model, shape, turbo_lora=first, recipe=recipe("phased", optimiser={"lr": 1e-9, "warmup": 0}))
    for ours, theirs in zip(second.lora.adapters, first.lora.adapters, strict=True):
        torch.testing.assert_close(ours.weight(), theirs.weight(), atol=1e-6, rtol=1e-5)


def test_captioned_pictures_need_no_latents_of_the_teacher(nodes, flow, output):
    model, shape = flow
    captioned = bank(latents=torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
    *_, text = distil(nodes, model, shape, captioned, recipe=recipe("gft", profile={"steps": 5}), latent=None)
    assert not (output / "teacher").exists() and "5 steps, sampler euler" in text


def test_minutes_are_for_everything(flow, tmp_path):
    job = job_for(flow)
    asked = {**job.recipe.run, "steps": 100000, "minutes": 0.02}
    long = jobs.replace(job, recipe=jobs.replace(job.recipe, run=asked, data={**job.recipe.data, "count": 5000}))
    done = whole(long, tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert 2 <= plan["count"] < 5000 and 0.01 < plan["minutes"] < 0.02 and 5 <= done.result.counters.step < 100000
    assert done.result.ended == "time"
    again = whole(long, tmp_path / "run")
    assert again.trained == 0 and same(again.turbo, done.turbo)


def test_pictures_arrive_while_it_trains_and_change_nothing(flow, tmp_path):
    class Often(Live):
        def training(self, sample, history):
            super().training(sample, history)
            self.next = 0.0

        def picture(self):
            self.next = min(self.next, 0.0)
            return super().picture()

    sent, job = [], job_for(flow)
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id: sent.append((value, total, preview)))
    latent_preview.set_preview_method("latent2rgb")
    try:
        with torch.inference_mode():
            done = host_distill.run(job, tmp_path / "seen", Often(job.model))
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        latent_preview.set_preview_method(None)
    assert same(done.turbo, whole(job, tmp_path / "unseen").turbo)
    assert (6, 6) in [(value, total) for value, total, preview in sent if preview is None]  # the teacher's latents
    kind, picture, side = [preview for value, total, preview in sent if preview][-1]
    assert [value for value, _, preview in sent if preview] == list(range(1, STEPS + 1))
    assert kind == "JPEG" and max(picture.size) == side and picture.width > 2 * picture.height  # curves, and a square beside them
    left, right = picture.crop((0, 0, 200, 200)), picture.crop((picture.width - 200, 0, picture.width, 200))
    assert len(left.getcolors(1 << 20)) > 1 and len(right.getcolors(1 << 20)) > 1


def test_a_bank_survives_the_disk(tmp_path):
    entry = {"pooled_output": torch.ones(1, 4), "width": 512, "reference_latents": [torch.zeros(1, 2, 2)], "nothing": None}
    original = PromptBank.of([[[torch.rand(1, 8, 4), entry]]], [[[torch.rand(1, 8, 4), {}]]], ("a", ""), torch.rand(1, 4, 2, 2))
    save_bank(original, tmp_path / "bank.safetensors")
    loaded = load_bank(tmp_path / "bank.safetensors")
    assert alike(original, loaded) and loaded.texts == ("a", "") and torch.equal(loaded.latents, original.latents)
    assert loaded.positive.items[0].entry["width"] == 512 and loaded.negative.items[0].role == "negative"
    jittered = PromptBank.of([[[original.positive.items[0].entry["cross_attn"] * 1.0001, entry]]], [[[original.negative.items[0].entry["cross_attn"], {}]]],
                             ("a", ""), original.latents)  # fmt: skip
    assert alike(original, jittered) and not alike(original, PromptBank.of([[[torch.rand(1, 8, 4), entry]]], [[[torch.rand(1, 8, 4), {}]]]))
