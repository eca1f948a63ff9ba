"""Turbo Check on tiny models in the real ComfyUI: what it lets through, what it warns of, what it stops."""

import logging
from dataclasses import replace

import pytest
import tiny
import torch
from comfy_execution.graph import ExecutionBlocker
from comfyui_distillery.nodes import host_turbo_models, host_turbo_sampling
from comfyui_distillery.samplers.turbo import PROFILES
from training_cases import ARCHITECTURES
from turbo_cases import at_timesteps, by_name, custom, latent_for, prompt, stand_in, turbo


@pytest.fixture(scope="module")
def sdxl():
    return stand_in("sdxl")


@pytest.fixture(scope="module")
def schnell():
    return stand_in("flux-schnell")


def checked(nodes, model, profile="auto", **more):
    """(MODEL, SAMPLER, SIGMAS, cfg, negative, text)"""
    return tiny.run(nodes["Distillery_TurboCheck"], model=model, profile=profile, **more)


def test_a_graph_by_the_profile_is_let_through_as_it_is(nodes, sdxl):
    model, shape = sdxl
    patched, sampler, sigmas, cfg, _ = turbo(nodes, model, "dmd2-sdxl")
    out = checked(nodes, patched, "dmd2-sdxl", sampler=sampler, sigmas=sigmas, cfg=cfg)
    assert out[1] is sampler and out[2] is sigmas and out[3] == cfg
    assert isinstance(out[4], ExecutionBlocker) and "given no negative" in out[4].message
    assert "Nothing contradicts" in out[5]
    latent = latent_for(shape, 2)
    expected = custom(nodes, patched, sampler, sigmas, cfg, latent)
    tiny.assert_same(custom(nodes, out[0], sampler, sigmas, cfg, latent), expected)
    assert checked(nodes, patched, "dmd2-sdxl", when_sampling=False)[0] is patched


def test_every_profile_agrees_with_itself(nodes):
    """For each tiny base: what Turbo Sampling gives, Turbo Check does not mind."""
    for base in ("sdxl", "flux-schnell", "wan22"):
        model, shape = stand_in(base)
        for key, profile in PROFILES.items():
            if profile.base in host_turbo_models.bases_of(model) and profile.boundary is None:
                student = host_turbo_models.carrying(model, profile, None, "a LoRA")
                for steps in {profile.default_steps, profile.steps[0]}:
                    made = turbo(nodes, student, key, steps, latent=latent_for(shape))
                    names = dict(zip(("model", "sampler", "sigmas", "cfg"), made))
                    assert "Nothing contradicts" in checked(nodes, profile=key, **names)[5], key


STAND_INS = {"flow": "wan22", "eps": "sdxl", "x0": "sdxl", "v": "v"}  # prediction: a model with it


def model_for(profile):
    """(model, shape of a latent): with the profile's prediction."""
    if profile.prediction != "cosmos":
        return stand_in(STAND_INS[profile.prediction])
    kind, network, shape, _ = ARCHITECTURES["Cosmos Predict 2"]
    return tiny.build_from(kind, network), shape


@pytest.mark.parametrize("key", PROFILES)
def test_what_turbo_sampling_makes_of_any_share_of_any_run_is_let_through(nodes, key):
    model, shape = model_for(PROFILES[key])
    base = host_turbo_models.bases_of(model)
    profile = replace(PROFILES[key], base=base[0] if base else PROFILES[key].base)
    model = host_turbo_models.carrying(model, profile, None, "a LoRA")
    if profile.is_flow and profile.shift is None:
        model = host_turbo_models.with_shift(model, 10.7)  # LTX-2's
    runs = 0
    for steps in sorted({profile.steps[0], profile.default_steps, profile.steps[-1]}):
        patched, _ = host_turbo_sampling.patch(model, profile, steps, latent_for(shape))
        for denoise in (1.0, 0.99, 0.98, 0.95, 0.9, 0.85, 0.83, 0.8, 0.75, 0.7, 0.67, 0.6, 0.5, 0.4, 0.3, 0.25):
            try:
                sigmas = host_turbo_sampling.levels(patched, profile, steps, denoise, latent_for(shape))
            except ValueError:
                continue  # none of its levels lie within this share
            cut = 0 if profile.boundary is None else int((sigmas >= profile.boundary).sum())
            for part in (sigmas[: cut + 1], sigmas[cut:]):
                found = host_turbo_sampling.problems_of(patched, profile, sigmas=part, cfg=profile.cfg)
                assert not found, (steps, denoise, part.tolist(), found)
                runs += 1
    assert runs > 1


@pytest.mark.parametrize("base, profile", [("sdxl", "dmd2-sdxl"), ("sdxl", "sdxl-turbo"), ("flux-schnell", "flux-schnell")])
def test_a_part_of_a_run_may_have_fewer_steps(nodes, base, profile):
    patched, sampler, sigmas, cfg, _ = turbo(nodes, stand_in(base)[0], profile, 4, denoise=0.75)
    assert len(sigmas) == 4
    assert "Nothing contradicts" in checked(nodes, patched, profile, sampler=sampler, sigmas=sigmas, cfg=cfg)[5]
    five = torch.linspace(1, 0, 6) * (14.6 if base == "sdxl" else 1)
    assert "and the run has 5" in checked(nodes, patched, profile, sigmas=five)[5]


def test_no_steps_are_no_run(nodes, sdxl):
    none = tiny.run(nodes["BasicScheduler"], model=sdxl[0], scheduler="simple", steps=4, denoise=0.0)[0]
    assert len(none) == 0
    for sigmas in (none, torch.zeros(1)):
        checked_model, *_, text = checked(nodes, sdxl[0], "sdxl-turbo", sigmas=sigmas)
        assert "Nothing contradicts" in text
        latent = latent_for(sdxl[1], seed=5)
        given = by_name(nodes, "euler"), sigmas, 1.0, latent
        tiny.assert_same(custom(nodes, checked_model, *given), custom(nodes, sdxl[0], *given))


def test_a_run_from_picture_to_noise_is_let_through(nodes, schnell):
    model, shape = schnell
    _, _, levels, cfg, _ = turbo(nodes, model, "flux-schnell")
    sampler = tiny.run(nodes["Distillery_SamplerInvertible"], method={"method": "bdia"})[0]
    found = []
    for inverted in (model, checked(nodes, model, "flux-schnell")[0]):
        with torch.inference_mode():
            latent = tiny.run(
                nodes["Distillery_Invert"], model=inverted, positive=prompt(model, 1), negative=prompt(model, 2), cfg=cfg, sampler=sampler,
                sigmas=levels, latent_image=latent_for(shape, seed=5),
            )[0]  # fmt: skip
        rising = custom(nodes, inverted, by_name(nodes, "euler"), levels.flip(0)[1:-1], cfg, latent_for(shape, seed=5), add_noise=False)
        found.append((latent["samples"], rising))
    for plain, looked_at in zip(*found):
        tiny.assert_same(looked_at, plain)


def test_a_negative_prompt_counts_unless_it_is_zeroed_out(nodes, sdxl):
    words = prompt(sdxl[0], 2)
    (zeroed,) = nodes["ConditioningZeroOut"]().zero_out(words)
    assert "The negative prompt has no effect" in checked(nodes, sdxl[0], "sdxl-turbo", negative=words)[5]
    assert "Nothing contradicts" in checked(nodes, sdxl[0], "sdxl-turbo", negative=zeroed)[5]


@pytest.mark.parametrize("cfg, words", [(7.0, "7"), (5.5, "5.5")])
def test_guidance_on_a_guidance_free_student_is_stopped(nodes, sdxl, cfg, words):
    with pytest.raises(ValueError, match=rf"(?i)cfg.*{words}"):
        checked(nodes, sdxl[0], "sdxl-lightning", cfg=cfg)


def test_warnings_name_what_is_off_and_the_remedy(nodes, sdxl, schnell):
    model, _ = sdxl
    text = checked(
        nodes, model, "sdxl-lightning", sampler=by_name(nodes, "dpmpp_2m"), sigmas=at_timesteps(model, 999, 749, 499, 249), cfg=1.5,
        negative=prompt(model, 2),
    )[5]  # fmt: skip
    assert text.count("Warning:") >= 2 and "dpmpp_2m" in text and "1.5" in text
    assert "is a LoRA, and the model has none applied" in checked(nodes, model, "lcm-lora-sdxl")[5]
    shifted = nodes["ModelSamplingSD3"]().patch(schnell[0], 3.0)[0]
    assert "shift" in checked(nodes, shifted, "flux-schnell")[5].lower()


def test_another_base_is_stopped_naming_both(nodes, schnell):
    with pytest.raises(ValueError, match=r"(?s)SDXL.*Flux\.1 schnell|Flux\.1 schnell.*SDXL"):
        checked(nodes, schnell[0], "sdxl-lightning")


def test_the_cfg_of_the_run_itself_is_seen_where_the_graph_could_not(nodes, sdxl):
    model, shape = sdxl
    patched = checked(nodes, model, "sdxl-lightning")[0]
    levels = at_timesteps(model, 999, 749, 499, 249)
    with pytest.raises(ValueError, match="(?i)cfg"):
        custom(nodes, patched, by_name(nodes, "euler"), levels, 7.0, latent_for(shape))
    with torch.inference_mode(), pytest.raises(ValueError, match="(?i)cfg"):
        nodes["KSampler"]().sample(
            patched, 3, 4, 7.0, "euler", "sgm_uniform", prompt(model, 1), prompt(model, 2), latent_for(shape)
        )
    assert custom(nodes, patched, by_name(nodes, "euler"), levels, 1.0, latent_for(shape)).isfinite().all()


def test_warnings_of_a_run_go_to_the_log(nodes, sdxl, caplog):
    model, shape = sdxl
    patched = checked(nodes, model, "sdxl-lightning")[0]
    with caplog.at_level(logging.WARNING):
        custom(nodes, patched, by_name(nodes, "dpmpp_2m"), at_timesteps(model, 999, 749, 499, 249), 1.0, latent_for(shape))
    assert [record for record in caplog.records if "Turbo Check" in record.message and "dpmpp_2m" in record.message]


def test_where_a_models_levels_cannot_be_told_the_check_says_so_and_lets_it_run(nodes, sdxl):
    model, _ = sdxl
    _, sampler, sigmas, cfg, _ = turbo(nodes, model, "tcd-sdxl")
    (other,) = nodes["ModelSamplingDiscrete"]().patch(model, "lcm", False)
    text = checked(nodes, other, "tcd-sdxl", sampler=sampler, sigmas=sigmas, cfg=cfg)[5]
    assert "Warning: The noise levels cannot be looked at: the profile tcd-sdxl counts 1000 timesteps, and this model has 50" in text
