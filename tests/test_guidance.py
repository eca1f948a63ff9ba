"""Every rule in RULES: neutral is plain CFG, items stay apart, any latent shape."""

import pytest
import torch
from comfyui_distillery.samplers.core import batch_dims
from comfyui_distillery.samplers.guidance import RULES

from .problems import assert_close, randn

SHAPES = [(3, 4, 8, 8), (3, 4, 3, 8, 8), (3, 1, 96)]

every_rule = pytest.mark.parametrize("key", RULES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def predictions(shape, dtype=torch.float64):
    return randn(*shape).to(dtype), randn(*shape, seed=1).to(dtype)


def defaults(key, **given):
    return {knob.name: knob.default for knob in RULES[key].knobs} | given


def guide(key, steps, scale, **given):
    """One run over several (cond, uncond) steps, with state as a node makes it."""
    knobs = defaults(key, **given)
    state = RULES[key].new_state(knobs)
    return [RULES[key](cond, uncond, scale, state=state, **knobs) for cond, uncond in steps]


def dot(a, b):
    return (a * b).sum(batch_dims(a))


@every_rule
@every_shape
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_neutral_is_plain_cfg(dtype, tolerance, shape, key):
    rule = RULES[key]
    cond, uncond = predictions(shape, dtype)
    assert rule.is_neutral(rule.neutral) and not rule.is_neutral({})
    for result in guide(key, [(cond, uncond)] * 3, 5.0, **rule.neutral):
        assert_close(result, uncond + 5 * (cond - uncond), tolerance)


@every_rule
@every_shape
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_keeps_shape_and_dtype_and_leaves_inputs_alone(dtype, shape, key):
    cond, uncond = predictions(shape, dtype)
    before = cond.clone(), uncond.clone()
    for result in guide(key, [(cond, uncond)] * 2, 5.0):
        assert result.shape == cond.shape and result.dtype == dtype and result.isfinite().all()
    assert torch.equal(cond, before[0]) and torch.equal(uncond, before[1])


@every_rule
@every_shape
def test_items_stay_apart(shape, key):
    steps = [predictions(shape), tuple(reversed(predictions(shape)))]
    together = guide(key, steps, 5.0)[-1]
    for i in range(len(together)):
        alone = guide(key, [(cond[i : i + 1], uncond[i : i + 1]) for cond, uncond in steps], 5.0)[-1]
        assert_close(alone, together[i : i + 1], 1e-13)


@every_rule
def test_two_runs_are_equal(key):
    steps = [predictions((2, 4, 8, 8)), tuple(reversed(predictions((2, 4, 8, 8))))]
    for one, two in zip(guide(key, steps, 5.0), guide(key, steps, 5.0)):
        assert torch.equal(one, two)


@every_rule
def test_blank_predictions_give_no_nan(key):
    zero, some = torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for cond, uncond in ((zero, zero), (zero, some), (some, some)):
        assert guide(key, [(cond, uncond)], 5.0)[0].isfinite().all()


@every_rule
def test_facts_are_stated(key):
    rule = RULES[key]
    assert rule.title and rule.good_for and "arXiv:" in rule.source
    assert rule.neutral.keys() <= {knob.name for knob in rule.knobs}


@every_rule
def test_bad_settings(key):
    cond, uncond = predictions((1, 4, 8, 8))
    for knob in RULES[key].knobs:
        for value in (knob.min - 1, knob.max + 1, float("nan"), "2"):
            with pytest.raises(ValueError, match=rf"{knob.name} is .* it must be a number from"):
                RULES[key](cond, uncond, 5.0, **{knob.name: value})
    with pytest.raises(ValueError, match="unknown setting rescale=0.7"):
        RULES[key](cond, uncond, 5.0, rescale=0.7)


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
    cosine = dot(full - none, cond).abs() / (full - none).flatten(1).norm(dim=1) / cond.flatten(1).norm(dim=1)
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
