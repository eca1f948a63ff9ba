"""Every rule in RULES: neutral is plain CFG, items stay apart, any latent shape, any path."""

from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.moment import Moment
from comfyui_distillery.samplers.path import PREDICTIONS, Path

from bench.problems import Guided

from .guiding import defaults, guide, moment, predictions
from .problems import PATHS, assert_close, mixture, number

SHAPES = [(3, 4, 8, 8), (3, 4, 3, 8, 8), (3, 1, 96)]

every_rule = pytest.mark.parametrize("key", RULES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_rule
@every_shape
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_neutral_is_plain_cfg(dtype, tolerance, shape, key):
    rule = RULES[key]
    cond, uncond = predictions(shape, dtype)
    assert rule.is_neutral(rule.neutral) and not rule.is_neutral({})
    for prediction in PREDICTIONS:
        for result in guide(key, [(cond, uncond)] * 3, 5.0, path=Path(prediction), **rule.neutral):
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
def test_half_precision_costs_one_rounding(key):
    cond, uncond = predictions((2, 4, 32, 32), torch.float16)
    half = guide(key, [(cond, uncond)] * 2, 5.0)[-1]
    exact = guide(key, [(cond.double(), uncond.double())] * 2, 5.0, x_dtype=torch.float16)[-1]
    assert_close(half.double(), exact, 2**-11)


@every_rule
@every_shape
def test_items_stay_apart(shape, key):
    steps = [predictions(shape), tuple(reversed(predictions(shape)))]
    together = guide(key, steps, 5.0)[-1]
    for i in range(len(together)):
        assert_close(guide(key, steps, 5.0, only=slice(i, i + 1))[-1], together[i : i + 1], 1e-13)


@every_rule
def test_packed_latents_are_guided_like_each_by_itself_or_as_one(key):
    """A spatial rule takes the pack apart. Any other sees one long latent, whatever it packs."""
    shapes, rule = [(2, 4, 3, 8, 8), (2, 2, 16, 4)], RULES[key]
    pairs = [predictions(shape) for shape in shapes]
    moments = [replace(moment(shape), sigma=number([0.4, 0.6])) for shape in shapes]
    cond, uncond, x = (
        torch.cat([part.reshape(2, 1, -1) for part in parts], 2) for parts in (*zip(*pairs), [at.x for at in moments])
    )
    packed = replace(moments[0], x=x, shapes=tuple(shapes))
    got = rule(cond, uncond, 5.0, at=packed, state=rule.new_state(defaults(key)))
    if rule.spatial:
        parts = [rule(*pair, 5.0, at=at) for pair, at in zip(pairs, moments)]
        assert torch.equal(got, packed.joined(parts))
    else:
        plain = replace(packed, shapes=None)
        assert torch.equal(got, rule(cond, uncond, 5.0, at=plain, state=rule.new_state(defaults(key))))


@every_rule
def test_two_runs_are_equal(key):
    steps = [predictions((2, 4, 8, 8)), tuple(reversed(predictions((2, 4, 8, 8))))]
    for one, two in zip(guide(key, steps, 5.0), guide(key, steps, 5.0)):
        assert torch.equal(one, two)


@every_rule
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_small_and_odd_latents(size, key):
    cond, uncond = predictions((2, 4, size, 2 * size))
    assert guide(key, [(cond, uncond)], 5.0)[0].isfinite().all()
    assert_close(guide(key, [(cond, uncond)], 5.0, **RULES[key].neutral)[0], uncond + 5 * (cond - uncond), 1e-12)


@every_rule
def test_blank_predictions_give_no_nan(key):
    zero, some = torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for cond, uncond in ((zero, zero), (zero, some), (some, zero), (some, some)):
        at = replace(moment(zero.shape), x=some)  # where x is the prediction, d is zero
        assert RULES[key](cond, uncond, 5.0, at=at).isfinite().all()


@dataclass(frozen=True)
class Ruled(Guided):
    """Class guidance in a mixture by a rule."""

    key: str = ""
    knobs: tuple = ()

    def __call__(self, x, sigma):
        at = Moment(x, sigma.expand(len(x)), 1, 4, self.path)
        return RULES[self.key](self.wanted(x, sigma), self.everything(x, sigma), self.scale, at=at, **dict(self.knobs))


@every_rule
@pytest.mark.parametrize("path", PATHS)
def test_neutral_lands_where_class_guidance_of_a_mixture_does(path, key):
    everything, sigma, end = mixture(PATHS[path]), number(0.97 if path == "flow" else 14.6), number(1e-3)
    x = everything.start(sigma)
    neutral = Ruled(everything, 3.0, key, tuple(RULES[key].neutral.items()))
    assert_close(neutral.exact(x, sigma, end, steps=40), Guided(everything, 3.0).exact(x, sigma, end, steps=40), 1e-11)
    assert_close(neutral.exact(x, sigma, end, steps=40), Guided(everything, 3.0).exact(x, sigma, end, steps=400), 1e-3)


@every_rule
def test_facts_are_stated(key):
    rule = RULES[key]
    assert rule.title and rule.good_for and "arXiv:" in rule.source
    assert rule.neutral.keys() <= {knob.name for knob in rule.knobs}


def test_knobs_of_one_name_mean_one_thing():
    """The browser carries values over from method to method, and the Guider offers all of them."""
    for one, two in combinations(RULES.values(), 2):
        knobs = {knob.name: knob for knob in one.knobs}
        assert all(knobs.get(knob.name, knob) == knob for knob in two.knobs)


@every_rule
def test_bad_settings(key):
    cond, uncond = predictions((1, 4, 8, 8))
    for knob in RULES[key].knobs:
        numbers = () if knob.options else (knob.min - 1, knob.max + 1, float("nan"))
        for value in (*numbers, "2", None):
            with pytest.raises(ValueError, match=rf"{knob.name} is .* it must be (a whole number|a number|one of)"):
                RULES[key](cond, uncond, 5.0, at=moment(cond.shape), **{knob.name: value})
    with pytest.raises(ValueError, match="unknown setting volume=0.7"):
        RULES[key](cond, uncond, 5.0, at=moment(cond.shape), volume=0.7)
