"""Rules one after the other, and what a rule is told of the moment."""

import math

import pytest
import torch
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.chain import as_uncond, guide, plain
from comfyui_distillery.samplers.guidance.moment import Moment

from .guiding import defaults, moment, predictions
from .problems import FLOW, PATHS, assert_close, randn

SHAPES = [(3, 4, 8, 8), (2, 4, 3, 8, 8), (2, 1, 96)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
SCALE = 5.0


def links(*names, **neutral):
    made = []
    for name in names:
        knobs = defaults(name)
        made.append((RULES[name], knobs, RULES[name].new_state(knobs)))
    return made


def neutral(name):
    knobs = defaults(name, **RULES[name].neutral)
    return RULES[name], knobs, RULES[name].new_state(knobs)


@every_shape
def test_no_rules_are_plain_cfg_bit_for_bit(shape):
    cond, uncond = predictions(shape, torch.float32)
    assert torch.equal(guide([], cond, uncond, SCALE, None), uncond + (cond - uncond) * SCALE)


@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_as_uncond_undoes_plain(scale):
    cond, uncond = predictions((2, 4, 8, 8))
    assert_close(as_uncond(cond, plain(cond, uncond, scale), scale), uncond, 1e-12)


@every_shape
@pytest.mark.parametrize("name", RULES)
def test_one_rule_is_that_rule(shape, name):
    cond, uncond = predictions(shape)
    at = moment(shape)
    (rule, knobs, state), again = links(name)[0], RULES[name].new_state(defaults(name))
    assert torch.equal(
        guide([(rule, knobs, state)], cond, uncond, SCALE, at), rule(cond, uncond, SCALE, at=at, state=again, **knobs)
    )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("first", [True, False])
def test_a_neutral_rule_hands_on(name, first):
    cond, uncond = predictions((3, 4, 8, 8))
    at = moment((3, 4, 8, 8))
    alone = guide(links("rescale"), cond, uncond, SCALE, at)
    chain = [neutral(name), *links("rescale")] if first else [*links("rescale"), neutral(name)]
    assert_close(guide(chain, cond, uncond, SCALE, at), alone, 1e-10)


def test_rules_follow_one_another_in_order():
    """APG of the guidance that rescale left: its published formula on (rescaled - cond) / (scale - 1)."""
    shape = (3, 4, 8, 8)
    cond, uncond = predictions(shape)
    at = moment(shape)
    rescaled = guide(links("rescale"), cond, uncond, SCALE, at)
    difference = ((rescaled - cond) / (SCALE - 1)).flatten(1)
    unit = cond.flatten(1) / cond.flatten(1).norm(dim=1, keepdim=True)
    orthogonal = difference - (difference * unit).sum(1, keepdim=True) * unit
    knobs = defaults("apg", eta=0.0, norm_threshold=0.0, momentum=0.0)
    got = guide([*links("rescale"), (RULES["apg"], knobs, None)], cond, uncond, SCALE, at)
    assert_close(got, cond + (SCALE - 1) * orthogonal.view_as(cond), 1e-10)
    other = guide([(RULES["apg"], knobs, None), *links("rescale")], cond, uncond, SCALE, at)
    assert (got - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", RULES)
def test_what_another_function_gave_is_taken_for_plain_cfg(name):
    """denoised alone matters: uncond may be anything, where plain CFG of some other uncond is that denoised."""
    shape = (3, 4, 8, 8)
    cond, uncond = predictions(shape)
    at = moment(shape)
    expected = guide(links(name), cond, uncond, SCALE, at)
    got = guide(links(name), cond, torch.zeros_like(cond), SCALE, at, denoised=plain(cond, uncond, SCALE))
    assert_close(got, expected, 1e-9)


@pytest.mark.parametrize("own", [True, False])
def test_scale_1_is_left_as_it_is(own):
    cond, uncond = predictions((2, 4, 8, 8))
    given = randn(2, 4, 8, 8, seed=7).double() if own else None
    assert torch.equal(
        guide(links("apg", "rescale"), cond, uncond, 1, moment(cond.shape), given), given if own else plain(cond, uncond, 1)
    )


@pytest.mark.parametrize("name", RULES)
def test_an_item_without_guidance_stays_as_it_is_and_no_other(name):
    shape = (3, 4, 8, 8)
    cond, uncond = predictions(shape)
    dropped = uncond.clone()
    dropped[1] = cond[1]
    at = moment(shape)
    got, all_guided = (guide(links(name), cond, given, SCALE, at) for given in (dropped, uncond))
    assert torch.equal(got[1], cond[1])
    assert_close(got[[0, 2]], all_guided[[0, 2]], 1e-12)


# The moment


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_d_is_the_papers_output(path):
    """x = alpha x0 + sigma eps: eps on VE paths, eps - x0 on flow."""
    sigma = torch.tensor([0.3, 0.8], dtype=torch.float64)
    x0, eps = randn(2, 4, 8, 8).double(), randn(2, 4, 8, 8, seed=1).double()
    wide = sigma.view(-1, 1, 1, 1)
    x = path.alpha(wide) * x0 + wide * eps
    assert_close(Moment(x, sigma, 0, 1, path).d(x0), eps - x0 if path.is_flow else eps, 1e-10)


def test_packed_latents_come_apart_and_together_again():
    """Video (B, C, F, H, W) with audio (B, C, F, bins), packed by core's own rule: flattened, one after the other."""
    video, audio = randn(2, 4, 3, 8, 8).double(), randn(2, 8, 5, 16, seed=1).double()
    packed = torch.cat([video.reshape(2, 1, -1), audio.reshape(2, 1, -1)], dim=2)
    shapes = ((2, 4, 3, 8, 8), (2, 8, 5, 16))
    at = Moment(packed, torch.tensor([0.5, 0.7]).double(), 1, 4, FLOW, shapes)
    parts = at.parts(packed)
    assert torch.equal(parts[0], video) and torch.equal(parts[1], audio)
    assert torch.equal(at.joined(parts), packed)
    assert [tuple(m.x.shape) for m in at.split()] == list(shapes) and all(m.shapes is None for m in at.split())
    assert math.prod(packed.shape) == video.numel() + audio.numel()


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.spatial])
def test_spatial_rules_take_packed_latents_apart(name):
    """Each part as if it were alone."""
    shapes = ((2, 4, 3, 8, 8), (2, 8, 5, 16))
    conds, unconds, xs = ([randn(*shape, seed=10 * i + j).double() for j, shape in enumerate(shapes)] for i in range(3))
    sigma = torch.tensor([0.5, 0.7]).double()
    at = Moment(torch.cat([x.reshape(2, 1, -1) for x in xs], dim=2), sigma, 1, 4, FLOW, shapes)
    packed = guide(links(name), at.joined(conds), at.joined(unconds), SCALE, at)
    for part, cond, uncond, x in zip(at.parts(packed), conds, unconds, xs):
        assert_close(part, guide(links(name), cond, uncond, SCALE, Moment(x, sigma, 1, 4, FLOW)), 1e-10)
