"""Distilled models sampled by their profiles, on tiny models in the real ComfyUI: equal to the graphs one would build by hand."""

import comfy.model_sampling
import comfy.supported_models
import pytest
import tiny
import torch
from comfyui_distillery.nodes import host_turbo_models, host_turbo_sampling, turbo_text
from comfyui_distillery.samplers.turbo import PROFILES
from training_cases import ARCHITECTURES
from turbo_cases import at_timesteps, by_name, custom, from_file, latent_for, stand_in, turbo


@pytest.fixture(scope="module")
def sdxl():
    return stand_in("sdxl")


@pytest.fixture(scope="module")
def schnell():
    return stand_in("flux-schnell")


# The same as the graph by hand


@pytest.mark.parametrize(
    "profile, steps, sampler, timesteps",
    [
        ("sdxl-lightning", 4, "euler", (999, 749, 499, 249)),
        ("sdxl-lightning", 2, "euler", (999, 499)),
        ("dmd2-sdxl", 4, "lcm", (999, 749, 499, 249)),
        ("sdxl-turbo", 1, "euler_ancestral", (999,)),
    ],
)
def test_discrete_profiles_equal_the_graph_by_hand(nodes, sdxl, profile, steps, sampler, timesteps):
    model, shape = sdxl
    patched, made, sigmas, cfg, text = turbo(nodes, model, profile, steps)
    levels = at_timesteps(model, *timesteps)
    assert patched is model and cfg == 1.0
    torch.testing.assert_close(sigmas, levels, rtol=1e-6, atol=0)
    latent = latent_for(shape, 2)
    tiny.assert_same(
        custom(nodes, patched, made, sigmas, cfg, latent), custom(nodes, model, by_name(nodes, sampler), sigmas, 1.0, latent)
    )
    assert PROFILES[profile].title in text and f"{steps} step" in text and PROFILES[profile].sources[0] in text


def test_one_step_of_sdxl_turbo_is_core_s_own_scheduler(nodes, sdxl):
    model, _ = sdxl
    torch.testing.assert_close(
        turbo(nodes, model, "sdxl-turbo", 1)[2], tiny.run(nodes["SDTurboScheduler"], model=model, steps=1, denoise=1.0)[0], rtol=1e-6, atol=0
    )


def test_schnell_equals_core_s_simple_scheduler(nodes, schnell):
    model, shape = schnell
    patched, sampler, sigmas, cfg, _ = turbo(nodes, model, "flux-schnell", 4)
    expected = tiny.run(nodes["BasicScheduler"], model=model, scheduler="simple", steps=4, denoise=1.0)[0]
    assert patched is model
    torch.testing.assert_close(sigmas, expected, rtol=1e-6, atol=1e-7)
    latent = latent_for(shape)
    tiny.assert_same(
        custom(nodes, patched, sampler, sigmas, cfg, latent), custom(nodes, model, by_name(nodes, "euler"), sigmas, 1.0, latent)
    )


def test_lcm_needs_no_patch_where_core_s_node_makes_one(nodes, sdxl):
    """Its boundary coefficients differ from 1 and 0 by less than 1e-5 at every level that is visited."""
    model, shape = sdxl
    patched, sampler, sigmas, cfg, _ = turbo(nodes, model, "lcm-sdxl", 4)
    assert patched is model
    torch.testing.assert_close(sigmas, at_timesteps(model, 999, 759, 499, 259), rtol=1e-6, atol=0)
    by_hand = nodes["ModelSamplingDiscrete"]().patch(model, "lcm", False)[0]
    ours, theirs = (custom(nodes, each, sampler, sigmas, cfg, latent_for(shape)) for each in (patched, by_hand))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_shift_is_what_core_s_node_makes_of_it(nodes):
    model, _ = stand_in("wan22")
    choice = host_turbo_sampling.choose(model, "wan21-lightx2v", 4)
    made = host_turbo_sampling.prepared(model, choice)
    by_hand = nodes["ModelSamplingSD3"]().patch(model, PROFILES["wan21-lightx2v"].shift)[0]
    torch.testing.assert_close(made.sigmas, tiny.schedule(by_hand, 4), rtol=1e-5, atol=1e-6)
    ours, theirs = (each.get_model_object("model_sampling") for each in (made.model, by_hand))
    tiny.assert_same(ours.sigmas, theirs.sigmas)
    assert ours.shift == theirs.shift == 5.0 and model.get_model_object("model_sampling").shift == 8.0
    assert "shift 5 instead of 8" in made.text


def test_the_shift_of_flux_is_counted_as_core_s_logarithm():
    model = tiny.build_from(comfy.supported_models.Flux, {**tiny.FLUX, "guidance_embed": True})
    assert host_turbo_models.shift_of(model) == pytest.approx(2.71828**1.15, rel=1e-4)
    patched = host_turbo_models.with_shift(model, 3.0)
    assert patched.get_model_object("model_sampling").sigma(torch.tensor(0.5)) == pytest.approx(0.75)
    assert host_turbo_models.with_shift(patched, 3.0) is patched


def test_a_network_that_predicts_x0_is_patched_as_core_s_node_does(nodes, sdxl):
    model, shape = sdxl
    patched, sampler, sigmas, cfg, text = turbo(nodes, model, "sdxl-lightning-1step")
    by_hand = nodes["ModelSamplingDiscrete"]().patch(model, "x0", False)[0]
    torch.testing.assert_close(sigmas, at_timesteps(model, 999), rtol=1e-6, atol=0)
    latent = latent_for(shape)
    expected = custom(nodes, by_hand, by_name(nodes, "euler"), sigmas, 1.0, latent)
    tiny.assert_same(custom(nodes, patched, sampler, sigmas, cfg, latent), expected)
    assert not torch.allclose(expected, custom(nodes, model, sampler, sigmas, cfg, latent), rtol=1e-2) and "x0" in text


# Auto


def test_auto_goes_by_the_attachment_first_then_the_file_then_the_architecture(nodes, sdxl, schnell):
    model, _ = sdxl
    named = from_file(model, "sdxl_lightning_2step.safetensors")
    text = turbo(nodes, named)[4]
    assert "SDXL-Lightning in 2 steps" in text and "sdxl_lightning_2step" in text
    lora = host_turbo_models.carrying(named, PROFILES["dmd2-sdxl"], 4, "the LoRA dmd2 is for it")
    after = nodes["ModelSamplingDiscrete"]().patch(lora, "eps", False)[0]  # any node that clones the MODEL
    assert "DMD2, SDXL, 4 steps in 4 steps: the LoRA dmd2 is for it" in turbo(nodes, after)[4]
    assert "Flux.1 schnell (LADD) in 4 steps: every Flux.1 schnell is distilled" in turbo(nodes, schnell[0])[4]


@pytest.mark.parametrize("name", ["OpenFLUX.1.safetensors", "flux1-schnell-dedistilled.safetensors"])
def test_auto_takes_no_model_for_distilled_whose_name_says_that_it_was_trained_back(nodes, schnell, name):
    model = from_file(schnell[0], name)
    with pytest.raises(ValueError, match=rf"its file is {name}\. If it is distilled, choose one of those for it: .*; if it is not, use KSampler"):
        turbo(nodes, model)
    assert "chosen" in turbo(nodes, model, "flux-schnell")[4]


def test_the_text_says_whether_a_negative_prompt_is_used_at_the_cfg_that_comes_out(nodes, sdxl):
    for key, words in (
        ("hyper-sdxl-cfg", "CFG 5, 5 to 8 are possible; a negative prompt is used."),
        ("hyper-sdxl", "a negative prompt has no effect."),
    ):
        assert words in turbo(nodes, sdxl[0], key)[4]
    for key, profile in PROFILES.items():
        if profile.negative and profile.cfg == 1:
            choice = host_turbo_sampling.as_choice(profile, None, "chosen")
            assert "a negative prompt has an effect only above 1" in turbo_text.chosen(choice, torch.tensor([1.0, 0.0])), key


def test_a_file_s_number_of_steps_goes_with_its_profile(nodes, sdxl):
    named = from_file(sdxl[0], "sdxl_lightning_8step_unet.safetensors")
    assert len(turbo(nodes, named, "sdxl-lightning")[2]) == len(turbo(nodes, named)[2]) == 9
    assert "the weights are for 8 steps, and others were asked for" in turbo(nodes, named, steps=4)[4]


def test_auto_lists_what_is_there_where_it_cannot_tell(nodes, sdxl):
    model, _ = sdxl
    with pytest.raises(ValueError, match=r"profile is auto.*SDXL.*not known.*choose one of those for it: .*sdxl-lightning.*use KSampler"):
        turbo(nodes, model)
    with pytest.raises(ValueError, match=r"its file is dreamshaper\.safetensors"):
        turbo(nodes, from_file(model, "dreamshaper.safetensors"))
    other = tiny.build_from(*ARCHITECTURES["AuraFlow"][:2])
    with pytest.raises(ValueError, match="a AuraFlow.*no profile is for it"):
        turbo(nodes, other)
    with pytest.raises(ValueError, match="is for SDXL, and model is a AuraFlow"):
        turbo(nodes, other, "sdxl-lightning")


def test_a_checkpoint_s_name_is_not_taken_for_another_base(nodes, schnell):
    with pytest.raises(ValueError, match="profile is auto"):
        turbo(nodes, from_file(stand_in("sd15")[0], "sdxl_lightning_4step.safetensors"))


# Bad input


def test_another_base_or_prediction_is_refused_naming_both_sides(nodes, sdxl, schnell):
    with pytest.raises(ValueError, match=r"(?s)SDXL.*Flux\.1 schnell|Flux\.1 schnell.*SDXL"):
        turbo(nodes, schnell[0], "sdxl-lightning")
    model = sdxl[0].clone()
    kind = type("ModelSampling", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION), {})
    model.add_object_patch("model_sampling", kind(model.model.model_config))
    for profile in ("sdxl-lightning", "sdxl-lightning-1step"):
        with pytest.raises(ValueError, match=r"predicts (eps|x0), and model is set to predict v\. Load"):
            turbo(nodes, model, profile)


def test_steps_that_are_not_offered_are_refused_with_those_that_are(nodes, sdxl):
    with pytest.raises(ValueError, match=r"steps is 3.*2, 4 or 8 steps"):
        turbo(nodes, sdxl[0], "sdxl-lightning", 3)


def test_a_shift_by_size_asks_for_the_latent(nodes):
    model = tiny.build_from(comfy.supported_models.Flux, {**tiny.FLUX, "guidance_embed": True})
    with pytest.raises(ValueError, match="Connect latent"):
        turbo(nodes, model, "hyper-flux")
    large, small = (turbo(nodes, model, "hyper-flux", latent=latent_for((16, side, side)))[2] for side in (128, 32))
    assert len(large) == len(small) and (large[1:-1] > small[1:-1]).all()
