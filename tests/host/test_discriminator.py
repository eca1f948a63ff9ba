"""Fit Discriminator, Load Discriminator and Discriminator Guidance in the real ComfyUI."""

import json
import os

import comfy.model_management
import comfy.model_sampling
import comfy.nested_tensor
import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance.discriminator import CHANCE, correction
from comfyui_distillery.samplers.path import Path
from safetensors import safe_open
from safetensors.torch import save_file

LOADED = "distillery_discriminators"


@pytest.fixture
def output(tmp_path, monkeypatch):
    """ComfyUI's output folder, and the folder in it where discriminators are saved and found."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    folder = tmp_path / "distillery" / "discriminators"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, LOADED, ([str(folder)], set()))
    return folder


def latents(shape, level, seed=0, count=12):
    return {"samples": level + 0.5 * tiny.noise_for(shape, range(seed, seed + count))}


def fit(nodes, model, shape, name="", steps=20, **given):
    inputs = {"real": latents(shape, 0.5), "generated": latents(shape, -0.5, seed=100), "steps": steps, "batch": 6, "seed": 0}
    with torch.inference_mode():
        return tiny.run(nodes["Distillery_FitDiscriminator"], model=model, name=name, **(inputs | given))


def load(nodes, file):
    with torch.inference_mode():
        return tiny.run(nodes["Distillery_LoadDiscriminator"], name=file)


def guided(nodes, model, discriminator, weight=1.0, boost=1.0, start_percent=0.0, end_percent=1.0):
    made = tiny.run(
        nodes["Distillery_DiscriminatorGuidance"], model=model, discriminator=discriminator, weight=weight, boost=boost,
        start_percent=start_percent, end_percent=end_percent,
    )  # fmt: skip
    return made[0]


@pytest.fixture(scope="module")
def fitted(nodes, built):
    model, shape = built
    return fit(nodes, model, shape)[0]


def test_weight_0_is_core_bit_for_bit(nodes, built, fitted):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    assert torch.equal(tiny.sample(guided(nodes, model, fitted, weight=0.0), noise), tiny.sample(model, noise))


def test_one_step_adds_the_correction(nodes, built, fitted):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    sampling, into = model.get_model_object("model_sampling"), model.model.process_latent_in
    sigmas = torch.tensor([float(sampling.sigma_max) * 0.9, 0.0])
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), False)
    path = Path("flow" if isinstance(sampling, comfy.model_sampling.CONST) else "eps")
    expected = 2.5 * correction(fitted.network, x, sigmas[0].expand(2), path)
    plain, corrected = (into(tiny.sample(m, noise, sigmas=sigmas)) for m in (model, guided(nodes, model, fitted, weight=2.5)))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(corrected - plain, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_it_moves_samples_to_where_the_real_ones_are(nodes, built, fitted):
    model, shape = built
    noise = tiny.noise_for(shape, range(4))
    plain, moved = (tiny.sample(m, noise, steps=8) for m in (model, guided(nodes, model, fitted, weight=2.0)))
    assert (moved.flatten(1).mean(1) > plain.flatten(1).mean(1)).all()


def test_it_repeats_itself_and_leaves_the_input_model_and_its_network_alone(nodes, built, fitted):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    before, weights = tiny.sample(model, noise), [w.clone() for w in fitted.network.parameters()]
    patched = guided(nodes, model, fitted)
    first = tiny.sample(patched, noise)
    assert torch.equal(tiny.sample(patched, noise), first) and not torch.equal(first, before)
    assert torch.equal(tiny.sample(model, noise), before)
    assert all(map(torch.equal, fitted.network.parameters(), weights))
    torch.testing.assert_close(tiny.sample(patched, noise[1:]), first[1:], rtol=1e-3, atol=1e-3)


def test_boost_is_more_for_latents_that_look_generated(nodes, built, fitted):
    model, shape = built
    noise = 0 * tiny.noise_for(shape, [1])
    for level, changes in ((-2.0, True), (2.0, False)):
        start = {"sigmas": torch.tensor([0.1, 0.0]), "latent": torch.full_like(noise, level)}
        runs = [tiny.sample(guided(nodes, model, fitted, boost=boost), noise, **start) for boost in (1.0, 4.0)]
        assert torch.equal(*runs) != changes


def test_outside_its_range_it_does_nothing(nodes, flow):
    model, shape = flow
    (handle, _), noise = fit(nodes, model, shape), tiny.noise_for(shape, [1])
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
    early = guided(nodes, model, handle, end_percent=0.5)
    run = {"sigmas": sigmas[5:], "latent": noise}
    assert torch.equal(tiny.sample(early, noise, **run), tiny.sample(model, noise, **run))
    assert not torch.equal(tiny.sample(early, noise, sigmas=sigmas[:3]), tiny.sample(model, noise, sigmas=sigmas[:3]))


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_any_guider_gets_the_correction_once(nodes, flow, style):
    """A guider that scales what its CFG step gives does not scale the correction."""
    model, shape = flow
    (handle, _), noise = fit(nodes, model, shape), tiny.noise_for(shape, [1])
    sigmas = torch.tensor([0.9, 0.0])

    def sampled(model):
        prompts = dict(zip(("cond1", "cond2", "negative"), map(tiny.prompt, (1, 2, 3))))
        (guider,) = tiny.run(nodes["DualCFGGuider"], model=model, cfg_conds=4.0, cfg_cond2_negative=3.0, style=style, **prompts)
        with torch.inference_mode():
            sampler = comfy.samplers.sampler_object("euler")
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)

    corrected = guided(nodes, model, handle)
    by_cfg, by_dual = (run(corrected) - run(model) for run in (lambda m: tiny.sample(m, noise, sigmas=sigmas), sampled))
    torch.testing.assert_close(by_dual, by_cfg, rtol=1e-3, atol=1e-4)


def test_masks_keep_what_they_keep(nodes, flow):
    model, shape = flow
    (handle, _), noise = fit(nodes, model, shape), tiny.noise_for(shape, [1])
    latent, mask = tiny.noise_for(shape, [2]), torch.zeros(1, 1, *shape[-2:])
    mask[..., :4] = 1
    made = tiny.sample(guided(nodes, model, handle), noise, latent=latent, mask=mask)
    torch.testing.assert_close(made[..., 4:], latent[..., 4:], rtol=1e-3, atol=1e-3)


# Files


def test_a_saved_one_comes_back(nodes, built, output):
    model, shape = built
    kept, text = fit(nodes, model, shape, name="of/mine")
    assert [file.name for file in (output / "of").iterdir()] == ["mine_00001_.safetensors"]
    assert str(output / "of" / "mine_00001_.safetensors") in text and f"accuracy {kept.facts['accuracy']:.1%}" in text
    loaded, told = load(nodes, os.path.join("of", "mine_00001_.safetensors"))
    assert loaded.facts == kept.facts and told == text
    noise = tiny.noise_for(shape, [1])
    one, two = (tiny.sample(guided(nodes, model, each), noise) for each in (kept, loaded))
    assert torch.equal(one, two)
    with safe_open(output / "of" / "mine_00001_.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["distillery"])
    expected = {"method": "discriminator guidance", "version": 1, "steps": 20, "seed": 0, "channels": shape[0], "real": 12}
    assert facts.items() >= expected.items() and facts.keys() >= {"prediction", "latent_format", "loss", "accuracy", "date"}


def test_an_earlier_file_stays_and_the_picker_lists_both(nodes, flow, output):
    for _ in range(2):
        fit(nodes, *flow, name="mine", steps=1)
    files = ["mine_00001_.safetensors", "mine_00002_.safetensors"]
    assert sorted(file.name for file in output.iterdir()) == files
    inputs = nodes["Distillery_LoadDiscriminator"].INPUT_TYPES()["required"]
    assert sorted(inputs["name"][1]["options"] if inputs["name"][0] == "COMBO" else inputs["name"][0]) == files


def test_an_empty_name_saves_nothing(nodes, flow, output):
    assert "Not saved" in fit(nodes, *flow, steps=1)[1] and not output.exists()


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../x", "..", "."])
def test_a_name_that_leads_elsewhere_is_refused(nodes, flow, output, name):
    with pytest.raises(ValueError, match="name is .* which is no file inside"):
        fit(nodes, *flow, name=name)
    assert not list(output.parent.rglob("*"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"nonsense", "cannot be read"),
        (None, "holds no discriminator"),
        ({"method": "discriminator guidance", "version": 2}, "is of format 2 and this pack reads 1"),
    ],
)
def test_a_file_that_is_none_is_refused(nodes, output, content, message):
    output.mkdir(parents=True)
    path = output / "x.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file({"w": torch.zeros(1)}, path, metadata=content and {"distillery": json.dumps(content)})
    with pytest.raises(ValueError, match=message):
        load(nodes, "x.safetensors")


# Interruption


@pytest.mark.parametrize("bar_throws", [True, False])
def test_interrupted_it_keeps_and_saves_what_it_has(nodes, flow, output, monkeypatch, bar_throws):
    """The server's progress bar, which is told of the first step for sure, throws where the user has interrupted."""
    management = comfy.model_management

    def interrupt(value, total, preview, node_id=None):
        management.interrupt_current_processing()
        if bar_throws:
            management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupt)
    with pytest.raises(management.InterruptProcessingException):
        fit(nodes, *flow, name="half", steps=500)
    assert not management.processing_interrupted()
    assert load(nodes, "half_00001_.safetensors")[0].facts["steps"] == (1 if bar_throws else 2)


# Bad input


def test_another_models_discriminator_is_refused_with_what_differs(nodes, flow):
    model, shape = flow
    handle, _ = fit(nodes, model, shape, steps=1)
    with pytest.raises(
        ValueError, match="latent channels 16, this model 4; prediction type flow, this model eps; latent format"
    ):
        guided(nodes, tiny.build("eps")[0], handle)
    with pytest.raises(ValueError, match=r"another model \(latent format \w+, this model Wan21\): connect that model"):
        guided(nodes, tiny.build("video")[0], handle)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"real": {"samples": torch.zeros(8, 4, 8, 8)}}, "real has 4 channels and this model works on 16"),
        ({"generated": {"samples": torch.ones(8, 16, 4, 4)}}, "make both with the same model, at the same size"),
        ({"real": {"samples": torch.ones(2, 16, 8, 8)}}, "real holds 2 latents: give at least 4"),
    ],
)
def test_bad_latents_are_refused(nodes, flow, change, message):
    with pytest.raises(ValueError, match=message):
        fit(nodes, *flow, **change)


def test_packed_latents_are_refused(nodes, flow):
    model, shape = flow
    nested = comfy.nested_tensor.NestedTensor([torch.zeros(4, *shape), torch.zeros(4, 8, 5)])
    with pytest.raises(ValueError, match="real holds several latents packed into one"):
        fit(nodes, model, shape, real={"samples": nested})
    handle, _ = fit(nodes, model, shape, steps=1)
    with pytest.raises(ValueError, match="latent_image holds several latents packed into one"):
        tiny.sample(guided(nodes, model, handle), nested, latent=nested)


def test_an_empty_range_is_refused(nodes, flow):
    model, shape = flow
    handle, _ = fit(nodes, model, shape, steps=1)
    with pytest.raises(ValueError, match="start_percent is 0.5 and end_percent 0.5"):
        guided(nodes, model, handle, start_percent=0.5, end_percent=0.5)


def test_a_picture_is_a_video_of_one_frame(nodes):
    model, _ = tiny.build("video")
    handle, _ = fit(nodes, model, (16, 8, 8), steps=1)
    assert handle.facts["shape"] == [1, 8, 8]


def test_where_it_cannot_tell_it_says_so(nodes, flow):
    model, shape = flow
    same = latents(shape, 0.0, count=40)
    handle, text = fit(nodes, model, shape, real=same, generated=latents(shape, 0.0, seed=900, count=40), steps=30)
    assert ("cannot tell latents apart" in text) == (handle.facts["loss"] >= CHANCE)
    assert handle.facts["loss"] > CHANCE - 0.05
