"""Compare, as ComfyUI would run it."""

import json
import sys

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from comfy_execution.graph import ExecutionBlocker
from comfyui_distillery.measure.pictures import compare, compare_latents

IDEALS = {"psnr": 100, "ssim": 1, "sharpness_ratio": 1, "latent_cosine": 1}  # all others: 0


@pytest.fixture(autouse=True)
def temp_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def pictures(count=2, side=32, seed=0):
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(seed))


def latent(*shape, seed=0):
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def run(nodes, reference, candidate, rows=4, gain=0.0):
    """(image, text, numbers, ui)"""
    node = nodes["Distillery_Compare"]
    output = node.EXECUTE_NORMALIZED(reference=reference, candidate=candidate, rows=rows, gain=gain)
    image, text, as_json = output.args
    return image, text, json.loads(as_json), output.ui


@pytest.mark.parametrize(
    "made", [pictures, lambda: latent(2, 4, 8, 8), lambda: latent(2, 16, 3, 8, 8), lambda: latent(1, 64, 20)],
    ids=["images", "latents", "video", "sound"],
)  # fmt: skip
def test_identical_inputs_give_the_exact_ideals(nodes, made):
    image, text, numbers, shown = run(nodes, made(), made())
    assert numbers
    for name, found in numbers.items():
        assert {found["mean"], *found["items"]} == {IDEALS.get(name, 0)}, name
    assert shown["text"] == [text] and shown["comparison"] == [numbers] and len(shown["images"]) == 1
    assert image.shape[0] == 1 and image.shape[-1] == 3


def test_the_numbers_are_those_of_the_measures(nodes):
    _, text, numbers, _ = run(nodes, pictures(), pictures(seed=1))
    assert numbers == compare(pictures(), pictures(seed=1))
    low, high = sorted(numbers["psnr"]["items"])
    assert f"psnr {numbers['psnr']['mean']:.4g} ({low:.4g} to {high:.4g})" in text.splitlines()
    a, b = latent(1, 4, 8, 8), latent(1, 4, 8, 8, seed=1)
    _, text, numbers, _ = run(nodes, a, b)
    assert numbers == compare_latents(a["samples"], b["samples"])
    assert f"latent cosine {numbers['latent_cosine']['mean']:.4g}" in text.splitlines()


def test_at_most_so_many_lines_are_drawn_and_all_items_measured(nodes):
    one, _, _, _ = run(nodes, pictures(1), pictures(1, seed=1))
    two, _, numbers, _ = run(nodes, pictures(5), pictures(5, seed=1), rows=2)
    assert two.shape[1] - one.shape[1] == 256 and len(numbers["psnr"]["items"]) == 5


@pytest.mark.parametrize(
    ("reference", "candidate", "said"),
    [
        (pictures(2), pictures(1), r"candidate has shape \(1, .* and reference \(2, .*same batch size"),
        (pictures(1, 32), pictures(1, 48), "candidate has shape .*48.* and reference .*32.*resolution"),
        (latent(1, 4, 8, 8), latent(1, 16, 8, 8), "candidate has shape .*16.* and reference"),
        (pictures(), latent(2, 4, 8, 8), "reference is images and candidate a latent: .*VAE Decode"),
        (pictures(), torch.full((2, 32, 32, 3), torch.nan), "candidate: item 0 holds NaN"),
        ({"samples": NestedTensor([torch.ones(1, 4, 8, 8)] * 2)}, latent(1, 4, 8, 8), "reference is a pack of several"),
    ],
    ids=["batch", "size", "channels", "kind", "nan", "pack"],
)
def test_what_cannot_be_compared_is_refused_with_both_names_and_the_remedy(nodes, reference, candidate, said):
    with pytest.raises(ValueError, match=said):
        run(nodes, reference, candidate)


def test_it_shows_progress_and_can_be_interrupted(nodes):
    steps = []

    def step(value, total, preview, **others):
        steps.append((value, total))
        if len(steps) == stop_after:
            comfy.model_management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(step)
    try:
        stop_after = None
        run(nodes, pictures(3), pictures(3, seed=1))
        assert steps[-1] == (3, 3)
        steps, stop_after = [], 1
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(nodes, pictures(3), pictures(3, seed=1))
        assert steps[-1][0] < 3
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)


def test_without_matplotlib_the_numbers_are_still_there(nodes, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    image, text, numbers, shown = run(nodes, pictures(), pictures(seed=1))
    assert isinstance(image, ExecutionBlocker) and "pip install matplotlib" in image.message
    assert numbers["psnr"]["items"] and text in shown["text"][0] and "images" not in shown


def test_the_latents_of_two_samplers_can_be_compared(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    ends = [{"samples": tiny.sample(model, noise, sampler=name)} for name in ("euler", "heun")]
    _, _, numbers, _ = run(nodes, *ends)
    distance = (ends[1]["samples"][1] - ends[0]["samples"][1]).norm() / ends[0]["samples"][1].norm()
    assert numbers["latent_relative_error"]["items"][1] == pytest.approx(float(distance), rel=1e-4)
