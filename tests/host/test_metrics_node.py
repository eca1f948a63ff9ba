"""Distribution Metrics in the real ComfyUI: its networks, its folders, and what it says of bad input."""

import json
import math
import os

import comfy.clip_vision
import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import tiny
import torch
from comfyui_distillery.measure.distribution import every_metric, fid
from comfyui_distillery.measure.inception import FidInception
from comfyui_distillery.measure.judge import load_judge
from PIL import Image
from safetensors.torch import save_file

CLIP = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "projection_dim": 6, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "num_channels": 3,
    "model_type": "clip_vision_model",
}  # fmt: skip


def pictures(count, seed, side=24):
    """In steps of 1 / 255, so that a PNG holds them exactly."""
    levels = torch.randint(256, (count, side, side, 3), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255 * (0.5 + 0.1 * seed) // (1 / 255) / 255


def vision(**changes):
    """A genuine CLIP_VISION with random weights."""
    model = comfy.clip_vision.ClipVisionModel({**CLIP, **changes})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 1) ** 0.5
    return model


@pytest.fixture(scope="module")
def clip_vision():
    return {"features": "clip_vision", "clip_vision": vision()}


@pytest.fixture(scope="module")
def measure(nodes, clip_vision):
    def run(reference, generated, features=None, neighbours=5, smallest=5000):
        inputs = {}
        for name, source in (("reference", reference), ("generated", generated)):
            if isinstance(source, torch.Tensor):
                inputs |= {name: source, f"{name}_source": {f"{name}_source": "images"}}
            else:
                inputs[f"{name}_source"] = {f"{name}_source": source[0], "folder": source[1]}
        node = nodes["Distillery_DistributionMetrics"]
        return tiny.run(node, **inputs, features=features or clip_vision, neighbours=neighbours, smallest=smallest)

    return run


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's input and output folders, empty."""
    for base in ("input", "output"):
        (tmp_path / base).mkdir()
        monkeypatch.setattr(folder_paths, f"{base}_directory", str(tmp_path / base))
    return tmp_path


def save(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray((255 * image.numpy()).round().astype(np.uint8)).save(folder / f"{index:03}.png")


def test_the_numbers_are_those_of_the_features_of_each_picture(measure, clip_vision):
    reference, generated = pictures(40, 0), pictures(21, 1)  # neither is a whole number of batches
    text, found = measure(reference, generated, neighbours=3, smallest=10)
    found = json.loads(found)
    embed = clip_vision["clip_vision"].encode_image
    alone = [torch.cat([embed(image[None])["image_embeds"] for image in images]) for images in (reference, generated)]
    expected = {name: value for name, value, _ in every_metric(*alone, k=3, smallest=10) if value is not None}
    assert found["metrics"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert {name: found[name] for name in ("reference", "generated", "resolution", "features")} == {
        "reference": 40, "generated": 21, "resolution": [24, 24], "features": {"network": "clip_vision", "count": 6},
    }  # fmt: skip
    assert "inception_score" in found["absent"] and "fid_infinity" in found["metrics"]
    assert f"fid              {found['metrics']['fid']:10.4g}   best 0" in text
    assert "21 generated pictures against 40 of reference, 24 x 24, 6 features of clip_vision" in text


def test_a_set_against_itself_is_ideal(measure):
    metrics = json.loads(measure(pictures(12, 0), pictures(12, 0))[1])["metrics"]
    assert metrics["fid"] == pytest.approx(0, abs=1e-9) and metrics["kid"] < 0
    assert [metrics[name] for name in ("precision", "recall", "density", "coverage")] == [1, 1, 1, 1]


def test_too_few_pictures_for_their_features_are_pointed_out(measure):
    assert "Fewer pictures than features" in measure(pictures(6, 0), pictures(40, 1))[0]
    assert "Fewer pictures than features" not in measure(pictures(7, 0), pictures(40, 1))[0]


def test_a_folder_gives_what_its_pictures_give_as_a_batch(measure, folders):
    reference, generated = pictures(20, 0), pictures(18, 1)
    save(folders / "input" / "real" / "photos", reference)
    save(folders / "output", generated)
    (folders / "output" / "notes.txt").write_text("not a picture")
    (folders / "output" / "deeper").mkdir()
    from_folders = measure(("input folder", "real/photos"), ("output folder", ""))
    assert from_folders == measure(reference, generated)
    assert measure(("input folder", "real/photos"), generated) == from_folders


def test_photographs_are_read_upright(measure, folders):
    photos = pictures(8, 0).roll(1, 2)[:, :20]  # 24 wide, 20 high
    for index, photo in enumerate(photos):
        picture = Image.fromarray((255 * photo.numpy()).round().astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        picture.transpose(Image.Transpose.ROTATE_90).save(folders / "input" / f"{index}.webp", lossless=True, exif=exif)
    assert measure(("input folder", ""), pictures(9, 1)[:, :20]) == measure(photos, pictures(9, 1)[:, :20])


def test_the_judge_gives_features_and_classes(measure):
    judge, (a, b) = load_judge(), (pictures(20, 0, 32), pictures(18, 1, 32))
    found = json.loads(measure(a, b, {"features": "judge"})[1])
    assert found["metrics"]["fid"] == pytest.approx(fid(judge.features(a), judge.features(b)), rel=1e-3)
    assert 1 <= found["metrics"]["inception_score"] <= judge.probabilities(b).shape[1]


def test_inception_is_read_from_models_inception(measure, nodes, tmp_path, monkeypatch):
    from torchvision.models import Inception3

    torch.manual_seed(0)
    weights = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "inception", ([str(tmp_path)], set()))
    folder_paths.filename_list_cache.pop("inception", None)
    save_file(weights, tmp_path / "fid.safetensors")
    save_file({**weights, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.safetensors")
    (tmp_path / "unsafe.pth").touch()
    features = nodes["Distillery_DistributionMetrics"].GET_SCHEMA().inputs[2]
    [combo] = next(option for option in features.options if option.key == "inception").inputs
    assert combo.options == ["fid.safetensors", "other.safetensors"]
    a, b = pictures(4, 0), pictures(5, 1)
    with torch.inference_mode():
        found = json.loads(measure(a, b, {"features": "inception", "weights": "fid.safetensors"}, neighbours=2)[1])
    network = FidInception(weights)
    assert found["features"] == {"network": "inception", "count": 2048}
    assert found["metrics"]["fid"] == pytest.approx(fid(network.features(a), network.features(b)), rel=1e-3)
    assert found["metrics"]["inception_score"] >= 1
    with pytest.raises(ValueError, match="1000 classes, and the network of FID has 1008"):
        measure(a, b, {"features": "inception", "weights": "other.safetensors"}, neighbours=2)


def test_its_result_is_kept_until_a_file_changes(nodes, folders):
    folder, node = folders / "output" / "made", nodes["Distillery_DistributionMetrics"]
    save(folder, pictures(3, 0))

    def fingerprint():
        return node.fingerprint_inputs(
            reference_source={"reference_source": "images"},
            generated_source={"generated_source": "output folder", "folder": "made"},
            features={"features": "judge"}, neighbours=1, smallest=10, reference=None,
        )  # fmt: skip

    first = fingerprint()
    assert fingerprint() == first
    os.utime(folder / "001.png", (1, 1))
    second = fingerprint()
    save(folder, pictures(4, 0))
    assert len({first, second, fingerprint()}) == 3


def test_it_shows_progress_and_can_be_interrupted(measure):
    steps = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **others: steps.append((value, total)))
    try:
        measure(pictures(33, 0), pictures(17, 1))
        assert steps[-1] == (5, 5)
        comfy.model_management.interrupt_current_processing()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            measure(pictures(33, 0), pictures(17, 1))
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)


# Bad input


@pytest.mark.parametrize("folder", ["..", "../output2", "/etc", "a/../../..", "link", "nul\0"])
def test_nothing_outside_comfyuis_folders_is_read(measure, folders, folder):
    save(folders / "output2", pictures(8, 0))
    (folders / "output" / "link").symlink_to(folders / "output2")
    with pytest.raises(ValueError, match="reference: folder .* leads out of ComfyUI.s output folder"):
        measure(("output folder", folder), pictures(8, 1))


def test_a_picture_that_is_a_link_to_elsewhere_is_not_read(measure, folders):
    save(folders / "elsewhere", pictures(8, 0))
    save(folders / "input", pictures(8, 0))
    (folders / "input" / "008.png").symlink_to(folders / "elsewhere" / "001.png")
    with pytest.raises(ValueError, match="generated: .*008.png is a link that leads out"):
        measure(pictures(8, 1), ("input folder", ""))


def test_bad_folders_are_named(measure, folders):
    bad = ("input folder", "set")
    with pytest.raises(ValueError, match="generated: there is no folder 'set' in ComfyUI's input folder"):
        measure(pictures(8, 0), bad)
    (folders / "input" / "set").mkdir()
    with pytest.raises(ValueError, match="generated: folder 'set' in ComfyUI's input folder holds no pictures"):
        measure(pictures(8, 0), bad)
    save(folders / "input" / "set", pictures(7, 0))
    Image.new("RGB", (30, 24)).save(folders / "input" / "set" / "z.png")
    with pytest.raises(ValueError, match="generated: z.png is 30 x 24 and 000.png 24 x 24. Crop or scale"):
        measure(pictures(8, 0), bad)
    file = folders / "input" / "set" / "z.png"
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="generated: .*z.png cannot be read as a picture"):
        measure(pictures(8, 0), bad)
    file.write_bytes((folders / "input" / "set" / "000.png").read_bytes()[:900])
    with pytest.raises(ValueError, match="generated: .*z.png cannot be read as a picture"):
        measure(pictures(8, 0), bad)
    Image.new("I;16", (24, 24)).save(file)
    with pytest.raises(ValueError, match="generated: .*z.png cannot be read as a picture .more than 8 bits"):
        measure(pictures(8, 0), bad)


def test_a_set_comes_from_one_place(nodes, clip_vision):
    node, batch = nodes["Distillery_DistributionMetrics"], pictures(8, 0)

    def run(source, images):
        common = {"generated_source": {"generated_source": "images"}, "generated": batch, "features": clip_vision}
        tiny.run(
            node,
            reference_source={"reference_source": "images", **source},
            reference=images,
            neighbours=5,
            smallest=10,
            **common,
        )

    with pytest.raises(ValueError, match="reference: no images are connected. Connect a batch, or choose a folder"):
        run({}, None)
    with pytest.raises(ValueError, match="reference: images are connected, and reference_source is a folder"):
        run({"reference_source": "input folder", "folder": ""}, batch)


NAN = pictures(8, 0)
NAN[6, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    "reference, generated, complaint",
    [
        (pictures(1, 0), pictures(8, 1), "reference: 1 pictures, and a distribution needs at least 2"),
        (pictures(8, 0), pictures(5, 1), "neighbours is 5, and generated holds 5 pictures.*give at most 4"),
        (pictures(8, 0), pictures(8, 1, 32), "generated: pictures of 32 x 32, and those of reference are 24 x 24.*Scale"),
        (NAN, pictures(8, 1), "reference: picture 6 holds NaN or infinite values"),
        (pictures(8, 1), NAN[..., :1], r"generated: got shape \(8, 24, 24, 1\)"),
    ],
)
def test_bad_batches_are_named_before_any_work(measure, reference, generated, complaint):
    with pytest.raises(ValueError, match=complaint):
        measure(reference, generated, {"features": "clip_vision", "clip_vision": None})


def test_a_vision_model_without_one_embedding_for_the_picture_is_refused(measure):
    siglip = {"features": "clip_vision", "clip_vision": vision(model_type="siglip_vision_model")}
    with pytest.raises(ValueError, match="clip_vision: this model gives 2-dimensional embeddings.*Load a CLIP ViT or DINOv2"):
        measure(pictures(8, 0), pictures(8, 1), siglip)
