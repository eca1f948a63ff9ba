"""What guidance leads away from beside the negative prompt: published formulas, identities and whose turn it is."""

import pytest
import torch
from comfyui_distillery.samplers.guidance.chain import plain
from comfyui_distillery.samplers.guidance.contrast import CONTRASTS, WEAKER, takes_turn

from .problems import assert_close, randn

SHAPES = [(3, 4, 8, 8), (2, 4, 3, 8, 8), (2, 1, 96)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
ALL = {**CONTRASTS, "weaker": WEAKER}
every_rule = pytest.mark.parametrize("name", ALL)


def predictions(shape, dtype=torch.float64):
    """cond, uncond, other."""
    return [randn(*shape, seed=seed).to(dtype) for seed in range(3)]


def knobs(name, **given):
    return {knob.name: knob.default for knob in ALL[name].knobs} | given


def guided(name, cond, uncond, others, scale, **given):
    return plain(cond, ALL[name].rule(uncond, others, cond, scale, **knobs(name, **given)), scale)


@every_rule
@every_shape
def test_neutral_is_plain_cfg(name, shape):
    cond, uncond, other = predictions(shape)
    rule = ALL[name]
    assert rule.is_neutral(rule.neutral) and not rule.is_neutral({})
    keeps, wanted = rule.wants(knobs(name, **rule.neutral), 0)
    assert keeps and wanted == (name != "alternating")
    if wanted:  # else the negative prompt is left as it is
        assert_close(guided(name, cond, uncond, [other], 5.0, **rule.neutral), plain(cond, uncond, 5.0), 1e-12)


@every_rule
def test_inputs_are_left_alone_and_items_stay_apart(name):
    given = predictions((3, 4, 8, 8))
    before = [part.clone() for part in given]
    cond, uncond, other = given
    together = guided(name, cond, uncond, [other], 5.0)
    assert all(torch.equal(*pair) for pair in zip(given, before))
    for i in range(3):
        alone = guided(name, *(part[i : i + 1] for part in (cond, uncond)), [other[i : i + 1]], 5.0)
        assert_close(together[i : i + 1], alone, 1e-13)


@every_shape
@pytest.mark.parametrize("scale, neg_scale", [(4.0, 1.0), (7.5, 2.0), (2.0, 0.3)])
def test_perpendicular_takes_nothing_from_the_prompt(shape, scale, neg_scale):
    """The published formula, and its point: what it adds for the negative is at right angles to the positive direction."""
    cond, uncond, empty = predictions(shape)
    got = guided("perpendicular", cond, uncond, [empty], scale, neg_scale=neg_scale)
    positive = (cond - empty).flatten(1)
    rest = (got - empty).flatten(1) - scale * positive
    assert rest.norm(dim=1).min() > 0.1
    assert_close((rest * positive).sum(1), torch.zeros(len(rest), dtype=torch.float64), 1e-9)
    negative = (uncond - empty).flatten(1)
    across = negative - (negative * positive).sum(1, keepdim=True) / positive.square().sum(1, keepdim=True) * positive
    assert_close(rest, -scale * neg_scale * across, 1e-9)


def test_perpendicular_without_a_negative_is_cfg_against_the_empty_prompt():
    cond, uncond, empty = predictions((2, 4, 8, 8))
    assert_close(guided("perpendicular", cond, uncond, [empty], 6.0, neg_scale=0.0), plain(cond, empty, 6.0), 1e-12)


def test_perpendicular_ignores_a_negative_along_the_prompt():
    cond, _, empty = predictions((2, 4, 8, 8))
    along = empty + 0.7 * (cond - empty)
    assert_close(guided("perpendicular", cond, along, [empty], 6.0), plain(cond, empty, 6.0), 1e-9)


def test_perpendicular_is_finite_where_prompt_and_empty_agree():
    cond, uncond, _ = predictions((2, 4, 8, 8))
    got = guided("perpendicular", cond, uncond, [cond], 6.0)
    assert got.isfinite().all()
    assert_close(got, cond - 6.0 * (uncond - cond), 1e-10)


@every_shape
@pytest.mark.parametrize("weight", [-2.0, 0.5, 3.0])
def test_another_prompt_adds_its_own_guidance(shape, weight):
    cond, uncond, other = predictions(shape)
    got = guided("several", cond, uncond, [other], 5.0, weight=weight)
    assert_close(got, uncond + 5.0 * (cond - uncond) + weight * (other - uncond), 1e-11)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_weaker_model_is_extrapolated_from(share):
    """cond + (scale - 1) (cond - weak) at share 1: equation 5 of the paper, w its scale."""
    cond, uncond, weak = predictions((2, 4, 8, 8))
    got = guided("weaker", cond, uncond, [weak], 3.0, share=share)
    assert_close(got, share * (cond + 2.0 * (cond - weak)) + (1 - share) * plain(cond, uncond, 3.0), 1e-12)
    if share == 1:
        assert torch.equal(guided("weaker", cond, None, [weak], 3.0, share=share), plain(cond, weak, 3.0))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 1.0])
def test_turns_are_as_many_as_the_share_and_evenly_spread(share):
    steps = 100
    turns = [takes_turn(share, step) for step in range(steps)]
    for n in range(1, steps + 1):
        assert abs(sum(turns[:n]) - share * n) < 1
    gaps = [b - a for a, b in zip(*[[i for i, turn in enumerate(turns) if turn][j:] for j in (0, 1)])]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("step", range(4))
def test_alternating_evaluates_one_of_the_two(step):
    keeps, wanted = CONTRASTS["alternating"].wants({"share": 0.5}, step)
    assert keeps != wanted and wanted == bool(step % 2)
    cond, _, other = predictions((2, 4, 8, 8))
    assert torch.equal(CONTRASTS["alternating"].rule(None, [other], cond, 5.0, share=0.5), other)


@pytest.mark.parametrize("share, expected", [(1.0, (False, True)), (0.5, (True, True)), (0.0, (True, True))])
def test_a_weaker_model_alone_needs_no_negative_prompt(share, expected):
    assert WEAKER.wants({"share": share}, 3) == expected
