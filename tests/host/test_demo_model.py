"""The bundled models: files that core's own loaders read, a genuine CLIP, and pictures that show what was asked for."""

import random

import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import tiny
import torch
from comfyui_distillery.measure.judge import load_judge

from tools import ROOT, shapes
from tools.train_judge import right

MODELS = ROOT / "models"
ASKED = [
    ("red", "blue", "center"), ("yellow", "black", "left"), ("green", "white", "top"), ("blue", "yellow", "bottom right"),
]  # fmt: skip


@pytest.fixture(scope="module", params=["shapes-dit", "shapes-unet"])
def bundled(nodes, request):
    with torch.inference_mode():
        return tiny.run(nodes["Distillery_LoadDemoModel"], name=request.param)


@pytest.fixture
def core_finds_them(nodes):
    for folder in ("diffusion_models", "vae"):
        folder_paths.add_model_folder_path(folder, str(MODELS))


def channels(model):
    return model.get_model_object("latent_format").latent_channels


def encode(nodes, clip, text):
    with torch.inference_mode():
        return nodes["CLIPTextEncode"]().encode(clip, text)[0]


def picture(nodes, bundled, text, seed=0):
    """(H, W, 3) in [0, 1], by core's KSampler and VAEDecode."""
    model, clip, vae = bundled
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, channels(model), 16, 16)}
        positive, negative = encode(nodes, clip, text), encode(nodes, clip, "")
        sampler = nodes["KSampler"]()
        (sampled,) = sampler.sample(model, seed, 20, 4.0, "euler", "simple", positive, negative, latent)
        return nodes["VAEDecode"]().decode(vae, sampled)[0][0]


def shares(image):
    """The share of the picture that is nearest to each palette colour."""
    palette = torch.tensor(list(shapes.COLOURS.values()))
    nearest = torch.cdist(image.reshape(-1, 3), palette).argmin(1)
    return dict(zip(shapes.COLOURS, (nearest.bincount(minlength=len(palette)) / len(nearest)).tolist(), strict=True))


def test_core_loads_the_transformer(nodes, core_finds_them):
    with torch.inference_mode():
        (model,) = nodes["UNETLoader"]().load_unet("shapes-dit.safetensors", "default")
    assert isinstance(model.model.model_config, comfy.supported_models.FluxSchnell)
    assert len(model.model.diffusion_model.double_blocks) + len(model.model.diffusion_model.single_blocks) >= 8


@pytest.mark.parametrize("count", [16, 4])
def test_core_loads_the_autoencoders(nodes, core_finds_them, count):
    with torch.inference_mode():
        (vae,) = nodes["VAELoader"]().load_vae(f"shapes-vae{count}.safetensors")
        latent = vae.encode(torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0)))
        assert latent.shape == (1, count, 16, 16)
        assert vae.decode(latent).shape == (1, 128, 128, 3)


def test_the_unet_is_stable_diffusion_1_with_every_weight_in_place(nodes):
    with torch.inference_mode():
        model = tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-unet")[0].model
    assert isinstance(model.model_config, comfy.supported_models.SD15)
    assert float(model.model_sampling.sigma_max) == pytest.approx(14.6146, abs=1e-4)
    loaded = model.diffusion_model.state_dict()
    on_disk = comfy.utils.load_torch_file(str(MODELS / "shapes-unet.safetensors"))
    assert set(loaded) == set(on_disk)
    assert all(torch.equal(loaded[key].float(), on_disk[key].float()) for key in on_disk)


def test_the_shift_is_that_of_cores_own_node(nodes, core_finds_them):
    with torch.inference_mode():
        ours = tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")[0].get_model_object("model_sampling")
        (model,) = nodes["UNETLoader"]().load_unet("shapes-dit.safetensors", "default")
        (core,) = nodes["ModelSamplingAuraFlow"]().patch_aura(model, 3.0)
    expected = core.get_model_object("model_sampling")
    assert torch.equal(ours.sigmas, expected.sigmas) and ours.multiplier == expected.multiplier
    assert float(ours.sigma_max) == 1.0


def test_latents_have_about_unit_variance_where_the_network_sees_them(bundled):
    rng = random.Random(123)
    pictures = shapes.draw([shapes.random_scene(rng) for _ in range(32)])
    with torch.inference_mode():
        latents = bundled[0].model.process_latent_in(bundled[2].encode(pictures.movedim(1, -1)))
        decoded = bundled[2].decode(bundled[2].encode(pictures.movedim(1, -1)))
    assert 0.8 < latents.std() < 1.25
    psnr = -10 * (decoded - pictures.movedim(1, -1)).square().mean((1, 2, 3)).log10()
    assert psnr.mean() > {16: 33, 4: 27}[channels(bundled[0])]


def test_the_text_encoder_is_a_genuine_clip(nodes, bundled):
    clip = bundled[1]
    assert isinstance(clip, comfy.sd.CLIP)
    plain, weighted = encode(nodes, clip, "a red star"), encode(nodes, clip, "a (red:1.5) star")
    assert plain[0][0].shape == (1, 24, 128) and plain[0][1]["pooled_output"].shape == (1, 128)
    changed = (plain[0][0] != weighted[0][0]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2]  # start, a, red
    assert not torch.equal(plain[0][0], encode(nodes, clip, "a blue star")[0][0])
    assert torch.equal(encode(nodes, clip, "a gnu")[0][0], encode(nodes, clip, "a yak")[0][0])


def test_every_weight_of_the_text_encoder_is_loaded(bundled):
    loaded = bundled[1].cond_stage_model.shapes.transformer.state_dict()
    on_disk, _ = comfy.utils.load_torch_file(str(MODELS / "shapes-text.safetensors"), return_metadata=True)
    assert set(loaded) == set(on_disk)
    assert all(torch.equal(loaded[key], on_disk[key].to(loaded[key])) for key in on_disk)


def test_every_caption_is_made_of_known_words_and_fits(bundled):
    rng = random.Random(5)
    for _ in range(300):
        tokens = bundled[1].tokenize(shapes.caption(shapes.random_scene(rng), rng))["shapes"]
        assert len(tokens) == 1 and not any(token == 2 for token, _ in tokens[0])


def test_pictures_show_the_colours_at_the_places_asked_for(nodes, bundled):
    """Read off the pixels, without the judge: the background's share, and the object's colour where it should be."""
    for colour, background, place in ASKED:
        item = shapes.Item("circle", colour, "large", place)
        image = picture(nodes, bundled, shapes.caption(shapes.Scene((item,), background, 0), random.Random(0), full=True))
        shown, (x, y) = shares(image), shapes.POSITIONS[place]
        assert max(shown, key=shown.get) == background
        at_its_place = image[int(128 * y) - 8 : int(128 * y) + 8, int(128 * x) - 8 : int(128 * x) + 8]
        assert shares(at_its_place)[colour] > 0.9, f"{colour} in the {place} covers {shares(at_its_place)[colour]:.0%}"


def test_the_judge_finds_what_was_asked_for(nodes, bundled):
    judge, rng = load_judge(), random.Random(77)
    scenes = [shapes.random_scene(rng, two_objects=0) for _ in range(12)]
    images = torch.stack([picture(nodes, bundled, shapes.caption(scene, rng, full=True), seed) for seed, scene in enumerate(scenes)])
    assert sum(right(scene, read) for scene, read in zip(scenes, judge.read(images), strict=True)) >= 9


def test_missing_or_damaged_weights_are_named_with_the_remedy(nodes, monkeypatch, tmp_path):
    import sys

    demo = sys.modules[nodes["Distillery_LoadDemoModel"].__module__]
    monkeypatch.setattr(demo, "MODELS", tmp_path)
    for state, content in (("missing", None), ("damaged", (MODELS / "shapes-dit.safetensors").read_bytes()[:5000])):
        if content:
            (tmp_path / "shapes-dit.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=rf"shapes-dit.safetensors is {state}.*git checkout models"):
            tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")
