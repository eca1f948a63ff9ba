"""Bad input of Distill and Continue, each through the node as ComfyUI runs it: a named error before the first step, and nothing lost."""

import resource
import sys

import comfy.supported_models
import folder_paths
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_distillery.distill.formats import Profile
from comfyui_distillery.distill.optimisers import OPTIMISERS
from comfyui_distillery.nodes import host_turbo
from comfyui_distillery.nodes.host_lora import as_patches, core_state
from safetensors.torch import save_file
from test_distill_nodes import STEPS, bank, distil, folders, recipe, same
from training_cases import assert_untouched, built, digest, inference_tensors, lora_for


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    for kind in ("output", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path / "output" / "distillery"


@pytest.fixture(scope="module")
def flow():
    model, shape = built("flow")
    return inference_tensors(model), shape


def written(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# A model that carries what training cannot honour


def bypassed(nodes, model, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    save_file(core_state(lora_for(model, targets="attention and mlp")), tmp_path / "style.safetensors")
    return nodes["LoraLoaderBypassModelOnly"]().load_lora_model_only(model, "style.safetensors", 1.0)[0]


def wrapped(model):
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", lambda executor, *args, **kwargs: executor(*args, **kwargs))


def post_cfg(model):
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"])


CARRIED = {
    "a wrapper around its network": wrapped,
    "model_function_wrapper": lambda model: model.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"])),
    "has diffusion_model.img_in replaced": lambda model: model.add_object_patch("diffusion_model.img_in", torch.nn.Linear(64, 128)),
    "a function after CFG": post_cfg,
}  # fmt: skip


@pytest.mark.parametrize("complaint", CARRIED)
def test_a_model_that_carries_a_conflicting_patch_is_refused(nodes, flow, output, complaint):
    model, shape = flow
    changed, before = model.clone(), digest(model)
    CARRIED[complaint](changed)
    with pytest.raises(ValueError, match=rf"^model .*{complaint}.*connect (it|the MODEL) from before"):
        distil(nodes, changed, shape)
    assert not written(output)
    assert_untouched(model, before)


def test_a_lora_in_bypass_mode_is_refused_with_the_remedy(nodes, flow, output, tmp_path, monkeypatch):
    model, shape = flow
    with pytest.raises(ValueError, match="injections .*bypass.* use the ordinary LoRA"):
        distil(nodes, bypassed(nodes, model, tmp_path, monkeypatch), shape)
    assert not written(output)


# Prompts, layers, packages


def test_no_prompt_is_named(nodes):
    _, clip, _ = tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")
    node = nodes["Distillery_DistillPrompts"]
    for text in ("", " \n\t\n"):
        with pytest.raises(ValueError, match="list holds no prompt: give at least one line"):
            tiny.run(node, source={"source": "list", "clip": clip, "prompts": text, "negative": ""})
    with pytest.raises(ValueError, match="conditioning is empty"):
        tiny.run(node, source={"source": "conditioning", "positive": [], "negative": tiny.prompt(1)})


def test_no_layer_to_train_is_named(nodes, output):
    plain = {**tiny.SD1, "transformer_depth": [0, 0], "transformer_depth_output": [0, 0, 0, 0], "transformer_depth_middle": -1}
    model = tiny.build_from(comfy.supported_models.SD15, plain)
    with pytest.raises(ValueError, match="targets is 'attention', and this model has no such layer. It has, for example, time_embed"):
        distil(nodes, model, (4, 8, 8), recipe=recipe(lora={"rank": 2, "targets": "attention"}))
    assert not written(output)


@pytest.mark.parametrize("name", [name for name, optimiser in OPTIMISERS.items() if optimiser.package])
def test_an_optimiser_that_is_not_installed_is_named_before_the_teacher_works(nodes, flow, output, name, monkeypatch):
    model, shape = flow
    monkeypatch.setitem(sys.modules, OPTIMISERS[name].package, None)  # as Python marks what cannot be imported
    with pytest.raises(ValueError, match=f"optimiser is '{name}', which needs {OPTIMISERS[name].package}.* pip install"):
        distil(nodes, model, shape, recipe=recipe(optimiser={"name": name}))
    assert not written(output)


# Going on with something else


def test_a_run_goes_on_with_its_own_base_and_recipe_alone(nodes, flow, output):
    model, shape = flow
    distil(nodes, model, shape, name="mine")
    before, other = written(output), built("flow")[0]
    for parameter in other.model.diffusion_model.parameters():
        parameter.data = parameter.data * 1.1
    for base, complaint in (
        (other, "another model: its weights differ by 10.0%"),
        (built("eps")[0], "another model: its architecture is SD15"),
        (as_patches(lora_for(model), model), r"begun differently \(patches: was ''"),
    ):
        with torch.inference_mode(), pytest.raises(ValueError, match=complaint):
            tiny.run(nodes["Distillery_Continue"], model=base, run="mine", steps=STEPS + 1)
    with pytest.raises(ValueError, match="another model: its weights differ by 10.0%"):
        distil(nodes, other, shape, name="mine")
    for change, complaint in (
        ({"recipe": recipe("phased")}, "objective: was 'guidance', is 'phased'"),
        ({"recipe": recipe(lora={"rank": 3})}, "lora.rank: was 2, is 3"),
        ({"seed": 4}, "run.seed: was 3, is 4"),
        ({"prompts": bank(2)}, "prompts: was"),
    ):
        with pytest.raises(ValueError, match=complaint):
            distil(nodes, model, shape, **{"name": "mine", **change})
    assert written(output) == before


def test_a_run_that_is_not_there_is_named(nodes, flow):
    with torch.inference_mode(), pytest.raises(ValueError, match="holds no run that can be read"):
        tiny.run(nodes["Distillery_Continue"], model=flow[0], run="gone", steps=0)


# A full disk


def test_a_disk_without_room_for_the_teachers_latents_is_named_before_any_is_made(nodes, flow, output):
    model, _ = flow
    with pytest.raises(OSError, match="1000000 latents of the teacher needs .* MiB in .* are free there"):
        distil(nodes, model, (16, 512, 512), recipe=recipe(data={"count": 1000000, "teacher_steps": 1}))
    assert not list(output.rglob("state-*")) and not list(output.rglob("pairs-*"))


@pytest.fixture
def full_disk():
    """``full_disk(bytes)``: from then on no file can grow beyond that, which is what a full disk does to a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_when_a_run_begins_is_named(nodes, flow, output, full_disk):
    model, shape = flow
    full_disk(10)
    with pytest.raises(OSError, match=r"(prompts\.safetensors|recipe\.json) could not be written"):
        distil(nodes, model, shape)
    full_disk(resource.RLIM_INFINITY)
    assert not [path for path in written(output) if path.suffix in (".part", ".json")]
    assert "6 steps in" in distil(nodes, model, shape)[-1]


def test_a_disk_that_fills_up_while_it_trains_costs_neither_the_lora_nor_the_run(nodes, flow, output, full_disk):
    """States, the LoRA's file and the picture cannot be written; what was learnt comes out of the node all the same."""
    model, shape = flow
    distil(nodes, model, shape, recipe=recipe(optimiser={"lr": 2e-3}))  # which leaves the teacher's latents
    full_disk(12000)
    _, turbo, *_, text = distil(nodes, model, shape, name="mine")
    full_disk(resource.RLIM_INFINITY)
    assert "The last state is not on the disk" in text and "could not be written" in text and f"{STEPS} steps in" in text
    mine = output / "runs" / "mine"
    assert mine in folders(output) and not list(mine.glob("*.part")) and not list(mine.glob("state-*"))
    again = distil(nodes, model, shape, name="mine")
    assert same(again[1], turbo) and list(mine.glob("state-*.json"))


# What was saved is what the graph uses


def spoilt(change):
    """``host_turbo.write``, with a disk that gives back something else."""
    write = host_turbo.write
    return lambda path, tensors, header: write(path, change(dict(tensors)), header)


def one_bit(tensors):
    key = next(key for key in tensors if key.endswith(("lora_up.weight", "lora_B.weight")))
    changed = tensors[key].clone()
    changed.view(torch.int16).flatten()[7] ^= 1 << 13  # of the exponent
    return {**tensors, key: changed}


def without_one(tensors):
    """Every key of one layer is gone."""
    path = next(key for key in tensors if key.endswith((".lora_up.weight", ".lora_B.weight"))).rsplit(".lora_", 1)[0]
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(path + ".")}


@pytest.mark.parametrize("dialect", ["core", "kohya", "diffusers"])
@pytest.mark.parametrize("change", [without_one, one_bit])
def test_saving_tests_what_came_to_lie_on_the_disk(flow, tmp_path, monkeypatch, change, dialect):
    model, _ = flow
    turbo = host_turbo.made(lora_for(model, targets="attention and mlp"), Profile(1, "euler", (1.0, 0.0), 1.0), model, {}, "mine")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    path, _ = host_turbo.save(turbo, model, "mine", dialect)
    assert path.exists()
    monkeypatch.setattr(host_turbo, "write", spoilt(change))
    with pytest.raises(ValueError, match="was saved, and ComfyUI's loader makes something else of"):
        host_turbo.save(turbo, model, "mine", dialect)
