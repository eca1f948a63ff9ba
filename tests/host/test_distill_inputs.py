"""What the nodes that train refuse, and say: before the first step, and before anything is written over."""

import json

import comfy.supported_models
import folder_paths
import pytest
import tiny
import torch
from comfyui_distillery.distill.objectives import OBJECTIVES
from comfyui_distillery.distill.recipe import Recipe
from comfyui_distillery.distill.settings import SECTIONS
from comfyui_distillery.nodes import host_distill
from comfyui_distillery.nodes import host_distill_jobs as jobs
from comfyui_distillery.nodes.distill_prompts import expanded, file_text
from comfyui_distillery.nodes.host_distill_live import Live
from comfyui_distillery.nodes.host_lora import as_patches
from comfyui_distillery.nodes.host_prompt_bank import PromptBank
from training_cases import built, inference_tensors, lora_for

SMALL = {"data": {"count": 4, "teacher_steps": 2}, "lora": {"rank": 2}, "run": {"steps": 2, "batch": 2}}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for kind in ("output", "input"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))


@pytest.fixture(scope="module")
def flow():
    model, shape = built("flow")
    return inference_tensors(model), shape


def bank(first=1):
    return PromptBank.of([tiny.prompt(first), tiny.prompt(2)], [tiny.prompt(9)])


def job_for(model, shape, prompts=None, start=None, **more):
    return jobs.Job(model, prompts or bank(), Recipe("guidance", **{**SMALL, **more}), shape, False, start)


def train(job, folder):
    with torch.inference_mode():
        return host_distill.run(job, folder, Live(job.model, pictures=False))


def refused(job, folder, complaint, kind=ValueError):
    with pytest.raises(kind, match=complaint):
        train(job, folder)


def test_a_run_goes_on_only_with_what_it_was_begun_with(flow, tmp_path):
    model, shape = flow
    folder, start = tmp_path / "run", lora_for(model)
    train(job_for(model, shape), folder)
    before = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    other, _ = built("flow")
    for parameter in other.model.diffusion_model.parameters():
        parameter.data = parameter.data * 1.1
    refused(job_for(other, shape), folder, "another model: its weights differ by 10.0%")
    refused(job_for(built("eps")[0], (4, 8, 8)), folder, "another model: its architecture is SD15, not FluxSchnell")
    refused(job_for(as_patches(start, model), shape), folder, r"begun differently \(patches: was ''")
    refused(job_for(model, shape, bank(5)), folder, r"begun differently \(prompts: was")
    refused(job_for(model, (16, 4, 4)), folder, r"latent: was \[16, 8, 8\], is \[16, 4, 4\]")
    refused(job_for(model, shape, start=start), folder, "start: was None, is")
    refused(job_for(model, shape, lora={"rank": 3}), folder, "lora.rank: was 2, is 3")
    assert before == {path: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_lora_on_the_model_is_part_of_what_is_taught(flow, tmp_path):
    model, shape = flow
    strong, weak = (as_patches(lora_for(model), model, strength) for strength in (1.0, 0.5))
    done = train(job_for(strong, shape), tmp_path / "run")
    assert done.trained == 2
    refused(job_for(weak, shape), tmp_path / "run", "patches: was")
    again = as_patches(lora_for(model), model, 1.0)  # as after a restart: other tensors of the same values
    assert train(job_for(again, shape), tmp_path / "run").trained == 0


def test_a_model_that_is_changed_while_it_samples_is_refused(nodes, flow, tmp_path):
    model, shape = flow
    guided = model.clone()
    guided.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    refused(job_for(guided, shape), tmp_path / "run", "model carries a function after CFG")
    cached = tiny.run(nodes["EasyCache"], model=model, reuse_threshold=0.2, start_percent=0.1, end_percent=0.9, verbose=False)[0]
    refused(job_for(cached, shape), tmp_path / "run", "wrapper around its network")
    assert not (tmp_path / "run").exists()


def test_a_model_without_the_layers_to_train_is_refused(tmp_path):
    plain = {**tiny.SD1, "transformer_depth": [0, 0], "transformer_depth_output": [0, 0, 0, 0], "transformer_depth_middle": -1}
    model = tiny.build_from(comfy.supported_models.SD15, plain)
    refused(job_for(model, (4, 8, 8)), tmp_path / "run", "this model has no such layer")


def test_a_disk_without_room_is_named_before_the_first_step(flow, tmp_path):
    model, _ = flow
    huge = job_for(model, (16, 512, 512), data={"count": 1000000, "teacher_steps": 1})
    refused(huge, tmp_path / "run", "1000000 latents of the teacher needs .* MiB in .* are free there", OSError)
    assert not list((tmp_path / "run").glob("state-*"))


@pytest.mark.parametrize("name", ["..", "../other", "a/../../b", "/etc/x", "C:\\x", "\\\\host\\x", "a:b", "a/b. ", "a\x00b"])
def test_a_run_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="no folder inside"):
        jobs.run_folder(name)


def test_names_of_folders_in_folders_are_runs(flow):
    train(job_for(*flow), jobs.run_folder("a/b"))
    assert jobs.runs() == ["a/b"]


def test_latents_must_fit_the_model(flow):
    model, shape = flow
    with pytest.raises(ValueError, match="latent is not connected"):
        jobs.shape_of(model, bank(), None)
    with pytest.raises(ValueError, match="latent has 5 channels and this model works on 16"):
        jobs.shape_of(model, bank(), {"samples": torch.ones(1, 5, 8, 8)})
    assert jobs.shape_of(model, bank(), {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}) == shape
    video, layout = built("video")
    assert jobs.shape_of(video, bank(), {"samples": torch.zeros(1, *layout)}) == layout


def test_learning_from_pictures_needs_pictures(flow, tmp_path):
    model, shape = flow
    real = jobs.Job(model, bank(), Recipe("gft", **SMALL), shape)
    refused(real, tmp_path / "run", "gft, which needs captioned pictures, and prompts holds none")
    with pytest.raises(ValueError, match="2 pictures and 1 captions"):
        PromptBank.of([tiny.prompt(1)], [tiny.prompt(2)], latents=torch.zeros(2, *shape))


def test_prompts_that_training_cannot_use_are_refused():
    with pytest.raises(ValueError, match="conditioning is empty"):
        PromptBank.of([], [tiny.prompt(1)])
    with pytest.raises(ValueError, match="negative has 2 parts"):
        PromptBank.of([tiny.prompt(1)], [tiny.prompt(1) + tiny.prompt(2)])
    with pytest.raises(ValueError, match="conditioning carries a mask"):
        PromptBank.of([[[torch.zeros(1, 8, 64), {"mask": torch.ones(1, 8, 8)}]]], [tiny.prompt(1)])
    with pytest.raises(ValueError, match="conditioning carries a Generator"):
        PromptBank.of([[[torch.zeros(1, 8, 64), {"odd": torch.Generator()}]]], [tiny.prompt(1)])


def test_choices_in_braces_become_every_combination():
    assert expanded("a {red|blue} {star|ring}\n\n plain {one} \na red star") == [
        "a red star", "a red ring", "a blue star", "a blue ring", "plain {one}",
    ]  # fmt: skip
    assert expanded("{a|{b|c}}") == ["a", "b", "c"]
    with pytest.raises(ValueError, match="prompts holds no prompt"):
        expanded(" \n\n")
    with pytest.raises(ValueError, match="more than 4096 prompts"):
        expanded("{1|2|3|4|5|6|7|8|9}" * 20)


def test_prompt_files_are_of_the_input_folder(tmp_path):
    (tmp_path / "input" / "some.txt").write_text("ein schöner Tag\n", "utf-8")
    (tmp_path / "input" / "latin.txt").write_bytes("schön".encode("latin-1"))
    (tmp_path / "secret.txt").write_text("no")
    assert expanded(file_text("some.txt"), "file") == ["ein schöner Tag"]
    for name, complaint in (("../secret.txt", "leads out"), ("none.txt", "there is none of that name"), ("latin.txt", "no text in UTF-8")):
        with pytest.raises(ValueError, match=complaint):
            file_text(name)


def test_prompts_from_each_source(nodes, tmp_path):
    _, clip, vae = tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")
    (tmp_path / "input" / "prompts.txt").write_text("a red star\na blue ring\n")
    node, images = nodes["Distillery_DistillPrompts"], torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    lines = {"prompts": "a red star\na blue ring", "negative": ""}
    with torch.inference_mode():
        listed, text = tiny.run(node, source={"source": "list", "clip": clip, **lines})
        filed, _ = tiny.run(node, source={"source": "file", "clip": clip, "file": "prompts.txt", "negative": ""})
        pictured, _ = tiny.run(node, source={"source": "pictures", "clip": clip, "vae": vae, "images": images, **lines})
        encode = nodes["CLIPTextEncode"]()
        star, ring, empty = (encode.encode(clip, each)[0] for each in ("a red star", "a blue ring", ""))
        given, _ = tiny.run(node, source={"source": "conditioning", "positive": star + ring, "negative": empty})
        with pytest.raises(ValueError, match="1 lines, and there are 2 pictures"):
            tiny.run(node, source={"source": "pictures", "clip": clip, "vae": vae, "images": images, **lines, "prompts": "a"})
    from comfyui_distillery.nodes.host_prompt_bank import alike

    assert text.splitlines() == ["a red star", "a blue ring"] and alike(listed, filed) and alike(listed, given)
    assert pictured.latents.shape == (2, 16, 16, 16) and len(pictured.positive) == 2
    assert listed.key() == filed.key() != given.key()


def test_the_recipe_node_makes_the_recipe_of_its_inputs(nodes):
    node, usual = nodes["Distillery_Recipe"], {section: {section: "usual"} for section in SECTIONS}
    for objective in OBJECTIVES:
        made, text = tiny.run(node, objective={"objective": objective}, law={"law": "uniform"}, **usual)
        assert made.to_json() == Recipe(objective).to_json() == json.loads(text)
    own = {**usual, "lora": {"lora": "own", "rank": 5}, "optimiser": {"optimiser": "own", "name": "lion", "lr": 1e-4}}
    made, _ = tiny.run(node, objective={"objective": "phased", "phases": 2}, law={"law": "logit_normal", "mean": 0.5}, **own)
    assert made.taught_steps == 2 and made.law_knobs["mean"] == 0.5 and made.lora["rank"] == 5
    assert made.optimiser["name"] == "lion" and made.lr == 1e-4 and made.run == Recipe("phased").run
    with pytest.raises(ValueError, match="profile.steps is 3, and the objective teaches 4"):
        tiny.run(node, objective={"objective": "phased"}, law={"law": "uniform"}, **{**usual, "profile": {"profile": "own", "steps": 3}})
