"""Rules that project: the published identities, and diffusers where it has the rule."""

from dataclasses import replace

import pytest
import torch
from comfyui_distillery.samplers.guidance import RULES

from .guiding import dot, guide, moment, predictions
from .problems import EPS, FLOW, PATHS, assert_close

SHAPES = [(3, 4, 8, 8), (3, 4, 3, 8, 8), (3, 1, 96)]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


# APG: Sadat et al. 2024, algorithm 1, one claim at a time.


@every_shape
def test_apg_at_eta_0_guides_across_the_prediction_only(shape):
    cond, uncond = predictions(shape)
    update = guide("apg", [(cond, uncond)], 5.0, eta=0.0, norm_threshold=0.0)[0] - cond
    assert dot(update, cond).abs().max() < 1e-11 * dot(update, update).max()
    assert_close(dot(update, uncond), 4 * (dot(cond, uncond) ** 2 / dot(cond, cond) - dot(uncond, uncond)), 1e-12)


def test_apg_eta_scales_the_part_along_the_prediction():
    cond, uncond = predictions((2, 4, 8, 8))
    none, half, full = (guide("apg", [(cond, uncond)], 5.0, eta=eta, norm_threshold=0.0)[0] for eta in (0.0, 0.5, 1.0))
    assert_close(half, (none + full) / 2, 1e-13)
    cosine = dot(full - none, cond).abs() / (dot(full - none, full - none) * dot(cond, cond)).sqrt()
    assert torch.allclose(cosine, torch.ones_like(cosine))


def test_apg_norm_threshold_caps_the_guidance_of_each_item():
    cond, uncond = predictions((3, 4, 8, 8))
    uncond = cond + (uncond - cond) * torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64).view(3, 1, 1, 1)
    size = (cond - uncond).flatten(1).norm(dim=1)
    update = guide("apg", [(cond, uncond)], 2.0, eta=1.0, norm_threshold=5.0)[0] - cond
    assert size[0] < 5 < size[1] < size[2]
    assert_close(update.flatten(1).norm(dim=1), size.clamp(max=5.0), 1e-12)


def test_apg_momentum_adds_earlier_differences():
    first, second = predictions((2, 4, 8, 8)), predictions((2, 4, 8, 8))[::-1]
    third = first[0], first[0] / 2
    result = guide("apg", [first, second, third], 3.0, eta=1.0, norm_threshold=0.0, momentum=-0.5)[-1]
    a, b, c = (cond - uncond for cond, uncond in (first, second, third))
    assert_close(result, third[0] + 2 * (c - 0.5 * b + 0.25 * a), 1e-12)


def test_apg_momentum_comes_before_the_cap():
    cond, uncond = predictions((1, 4, 8, 8))
    result = guide("apg", [(cond, uncond)] * 2, 2.0, eta=1.0, norm_threshold=5.0, momentum=-0.9)[-1]
    difference = 0.1 * (cond - uncond)  # capping first would leave 0.1 * 5
    assert difference.norm() < 5
    assert_close(result, cond + difference, 1e-12)


# CFG-Zero* and TCFG look at d = (x - denoised) / sigma: predicted noise, or velocity.


def guided_d(key, at, cond, uncond, scale, **knobs):
    """The guided d, from two d's."""
    denoised = (at.x - at.sigma.view(-1, *[1] * (cond.ndim - 1)) * d for d in (cond, uncond))
    return at.d(RULES[key](*denoised, scale, at=at, **knobs))


@every_shape
@every_path
def test_zero_star_guides_across_the_unconditional_prediction(path, shape):
    (cond, uncond), at = predictions(shape), moment(shape, path)
    guidance = guided_d("zero_star", at, cond, uncond, 5.0) - guided_d("zero_star", at, cond, uncond, 1.0)
    assert guidance.abs().max() > 1
    assert dot(guidance, uncond).abs().max() < 1e-11 * dot(guidance, guidance).max()
    assert_close(guided_d("zero_star", at, cond, uncond, 1.0), cond, 1e-12)


@every_shape
def test_tcfg_removes_what_the_two_scores_do_not_share(shape):
    """The damped prediction is the part of u along the direction that explains most of u and c: 2 x 2 algebra, no SVD."""
    cond, uncond = predictions(shape)
    cond = cond + uncond  # something in common
    damped = guided_d("tcfg", moment(shape), cond, uncond, 0.0)
    angle = torch.linspace(0, torch.pi, 20001, dtype=torch.float64).view(-1, 1)
    uu, cc, uc = (dot(a, b).flatten() for a, b in ((uncond, uncond), (cond, cond), (uncond, cond)))
    explained = angle.cos() ** 2 * uu + angle.sin() ** 2 * cc + 2 * angle.sin() * angle.cos() * uc  # of (a u + b c)
    best = angle[explained.argmax(0)].view(-1, *[1] * (len(shape) - 1))
    assert_close(damped, best.cos() * (best.cos() * uncond + best.sin() * cond), 1e-3)
    assert dot(damped, uncond - damped).abs().max() < 1e-11 * dot(uncond, uncond).max()


def test_tcfg_leaves_parallel_predictions_alone_and_drops_a_weaker_one_at_right_angles():
    at, (cond, uncond) = moment((2, 4, 8, 8)), predictions((2, 4, 8, 8))
    assert_close(guided_d("tcfg", at, cond, 0.3 * cond, 5.0), 0.3 * cond + 5 * 0.7 * cond, 1e-12)
    across = 0.1 * (uncond - dot(uncond, cond) / dot(cond, cond) * cond)
    assert_close(guided_d("tcfg", at, cond, across, 5.0), 5 * cond, 1e-11)


@pytest.mark.parametrize("key", ["zero_star", "tcfg"])
def test_strength_is_a_straight_line_from_plain_cfg(key):
    steps = [predictions((2, 4, 8, 8))] * 2
    none, half, full = (guide(key, steps, 5.0, strength=strength)[-1] for strength in (0.0, 0.5, 1.0))
    assert_close(half, (none + full) / 2, 1e-12)
    assert (full - none).abs().max() > 0.1


def test_zero_star_stands_still_in_the_first_steps_from_noise_and_nowhere_else():
    shape = (3, 4, 8, 8)
    cond, uncond = predictions(shape)
    levels = torch.tensor([1.0, 0.95, 0.6], dtype=torch.float64)  # the last item is that of a second stage

    def still(step, path=FLOW, zero_steps=2):
        at = replace(moment(shape, path, step), sigma=levels)
        result = RULES["zero_star"](cond, uncond, 5.0, at=at, zero_steps=zero_steps)
        return [torch.equal(result[i], at.x[i]) for i in range(3)]

    assert still(0) == still(1) == [True, True, False]
    assert still(2) == still(0, zero_steps=0) == still(0, EPS) == [False] * 3


# diffusers' guiders, whose scale is ours and whose predictions are d.


@every_shape
@every_path
def test_zero_star_is_diffusers(path, shape):
    guiders = pytest.importorskip("diffusers.guiders")
    (cond, uncond), at = predictions(shape, torch.float32), moment(shape, path)
    guider = guiders.ClassifierFreeZeroStarGuidance(guidance_scale=5.0, zero_init_steps=1)
    guider.set_state(step=1, num_inference_steps=10, timestep=None)
    got = guided_d("zero_star", at, cond.double(), uncond.double(), 5.0)
    assert_close(got, guider.forward(cond, uncond).pred.double(), 1e-5)
    guider.set_state(step=0, num_inference_steps=10, timestep=None)
    assert not guider.forward(cond, uncond).pred.any()


@every_shape
def test_tcfg_is_what_diffusers_computes(shape):
    module = pytest.importorskip("diffusers.guiders.tangential_classifier_free_guidance")
    cond, uncond = predictions(shape, torch.float32)
    got = guided_d("tcfg", moment(shape), cond.double(), uncond.double(), 5.0)
    assert_close(got, module.normalized_guidance(cond, uncond, 5.0).double(), 1e-4)
