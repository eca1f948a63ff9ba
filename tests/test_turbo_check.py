"""What contradicts a profile, and how grave that is."""

import pytest
import torch
from comfyui_distillery.samplers.turbo import PROFILES, problems, sigmas_of

from .test_turbo_trajectory import TOKENS, setting

DMD2, KLEIN, WAN = PROFILES["dmd2-sdxl"], PROFILES["flux2-klein-4b"], PROFILES["wan22-t2v-lightx2v"]


def severities(found):
    return [problem.severity for problem in found]


@pytest.mark.parametrize("key", PROFILES)
def test_a_graph_that_does_what_the_profile_says_has_no_problem(key):
    profile = PROFILES[key]
    for steps in profile.steps:
        sigmas = sigmas_of(profile, steps, *setting(profile), 1.0, TOKENS)
        shift = profile.shift_at(TOKENS, steps)
        assert not problems(
            profile, steps=steps, cfg=profile.cfg, shift=shift, sigmas=sigmas, sampler=profile.sampler, base=profile.base,
            prediction=profile.prediction, negative=False, expected=sigmas,
        )  # fmt: skip


def test_what_is_not_known_is_no_problem():
    assert not problems(DMD2) and not problems(DMD2, base=())


@pytest.mark.parametrize(
    "profile, known, severity, words",
    [
        (DMD2, {"base": "sd15"}, "error", ["SDXL", "Stable Diffusion 1.5"]),
        (WAN, {"base": ("flux", "chroma")}, "error", ["Wan 2.2", "Flux.1 dev or Chroma"]),
        (DMD2, {"prediction": "v"}, "error", ["eps", "predict v"]),
        (PROFILES["sdxl-lightning-1step"], {"prediction": "eps"}, "error", ["predicts x0", "predict eps"]),
        (DMD2, {"cfg": 7.0}, "error", ["cfg 1", "7", "burns"]),
        (DMD2, {"cfg": 1.5}, "warning", ["cfg 1", "1.5"]),
        (DMD2, {"cfg": 3.5}, "warning", ["cfg 1", "3.5"]),  # a merged fine-tune: oversaturated, no noise
        (PROFILES["hyper-sdxl-cfg"], {"cfg": 1.0}, "warning", ["5 to 8"]),
        (PROFILES["hyper-sdxl-cfg"], {"cfg": 30.0}, "error", ["5 to 8", "30"]),
        (DMD2, {"steps": 20}, "warning", ["4 steps", "20"]),
        (WAN, {"shift": 8.0}, "warning", ["shift 5", "8"]),
        (DMD2, {"sampler": "euler"}, "warning", ["lcm", "euler"]),
        (DMD2, {"negative": True}, "warning", ["negative", "cfg 1"]),
        (PROFILES["pcm-sdxl-smallcfg"], {"negative": True, "cfg": 1.0}, "warning", ["negative", "cfg is 1"]),
        (KLEIN, {"sigmas": torch.tensor([14.6, 4.0, 0.0])}, "error", ["14.6", "none above 1"]),
        (DMD2, {"sigmas": torch.tensor([4.0, 4.0, 0.0])}, "error", ["do not fall"]),
        (DMD2, {"sigmas": torch.tensor([14.6, 1.0, 4.0, 0.0])}, "error", ["do not fall"]),
        (DMD2, {"sigmas": torch.tensor([14.6, 4.0])}, "warning", ["4", "noise is left"]),
    ],
)
def test_each_contradiction_is_found_and_named(profile, known, severity, words):
    (problem,) = problems(profile, **known)
    assert problem.severity == severity and problem.remedy
    assert all(word in problem.text for word in words), problem.text


@pytest.mark.parametrize(
    "profile, known",
    [
        (WAN, {"base": ("wan21", "wan22")}),
        (PROFILES["lcm-lora-sdxl"], {"cfg": 2.0, "negative": True}),
        (PROFILES["qwen-image-lightning"], {"shift": 3.1}),  # as ComfyUI's templates have it
        (KLEIN, {"shift": 99.0}),  # it goes by size
        (WAN, {"sigmas": torch.tensor([1.0, 0.9375, 0.8333])}),  # the high-noise half of a pair
        (DMD2, {"sigmas": torch.tensor([0.0, 0.3, 5.0, 9.0]), "steps": 3, "expected": torch.tensor([14.6, 0.0])}),  # an inversion
        (DMD2, {"sigmas": torch.zeros(0), "expected": torch.tensor([14.6, 0.0])}),
    ],
)
def test_what_is_right_is_let_pass(profile, known):
    assert not problems(profile, **known)


def test_levels_that_the_student_does_not_know_are_named():
    expected = sigmas_of(DMD2, 4, *setting(DMD2))
    karras = torch.tensor([14.6146, 4.9, 1.2, 0.2, 0.0])
    (problem,) = problems(DMD2, sigmas=karras, expected=expected)
    assert problem.severity == "warning" and "4.9, 1.2, 0.2 besides" in problem.text
    assert not problems(DMD2, sigmas=expected[2:], expected=expected)


def test_errors_come_first():
    found = problems(DMD2, steps=20, cfg=7.0, base="sd15", sampler="euler")
    assert severities(found) == ["error", "error", "warning", "warning"]
