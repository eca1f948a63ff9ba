"""When the unconditional prediction is evaluated: adaptive, interval, every_nth, and what holds of every skipping rule."""

import pytest
import torch
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from comfyui_distillery.samplers.guidance.skipping.reuse import Reuse
from comfyui_distillery.samplers.guidance.skipping.skip import Drop, Skipper, similarities

from .guiding import moment
from .problems import assert_close, randn
from .skipping import Table, agreeing, begin, drawn, follow

every_rule = pytest.mark.parametrize("key", SKIPS)


def guided(key, similarity, numbers=None, **knobs):
    """The decisions of each call, for items whose predictions agree as in similarity: (calls,) or (calls, B)."""
    table = [row if isinstance(row, list) else [row] for row in similarity]
    decisions, _ = follow(begin(key, **knobs), *agreeing(table), numbers=numbers)
    return decisions if isinstance(similarity[0], list) else [needed for (needed,) in decisions]


def adaptive(similarity, numbers=None, **knobs):
    plain = {"threshold": 0.9, "min_guided": 1, "recheck": 0, "hysteresis": 0.05}
    return guided("adaptive", similarity, numbers, **(plain | knobs))


def told(flags):
    """True for 1."""
    return [flag == "1" for flag in flags]


# Every rule


@every_rule
def test_neutral_settings_evaluate_every_step_of_every_item(key):
    assert SKIPS[key].is_neutral(SKIPS[key].neutral) and not SKIPS[key].is_neutral({})
    cond, uncond = drawn(20, (2, 4, 8, 8))
    uncond[5:] = cond[5:]  # nothing agrees more
    decisions, filled = follow(begin(key, **SKIPS[key].neutral), cond, uncond)
    assert decisions == [[True, True]] * 20
    assert_close(filled, uncond, 1e-12)


@every_rule
def test_items_decide_as_in_runs_of_their_own(key):
    cond, uncond = drawn(12, (3, 4, 8, 8))
    for item in range(3):
        uncond[4 * item :, item] = cond[4 * item :, item]
    sigmas = torch.linspace(1, 0.1, 12).double().view(12, 1) * torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)
    decisions, together = follow(begin(key), cond, uncond, sigmas)
    assert any(False in row for row in decisions)
    for item in range(3):
        single, alone = follow(begin(key), cond, uncond, sigmas, only=slice(item, item + 1))
        assert single == [row[item : item + 1] for row in decisions]
        assert_close(alone, together[:, item : item + 1], 1e-13)


@every_rule
def test_facts_are_stated(key):
    rule = SKIPS[key]
    assert rule.title and rule.good_for and "arXiv:" in rule.source
    assert rule.neutral.keys() <= {knob.name for knob in rule.knobs}


def test_knobs_of_one_name_take_the_same_values():
    """The browser keeps a value where one method follows another."""
    ranges = {}
    for rule in SKIPS.values():
        for knob in rule.knobs:
            facts = knob.default, knob.min, knob.max, knob.step, knob.options
            assert ranges.setdefault(knob.name, facts) == facts


@every_rule
def test_numbers_out_of_range_are_refused_by_name(key):
    for knob in SKIPS[key].knobs:
        wrong = ("no such",) if knob.options else (knob.min - 1, knob.max + 1, float("nan"), "2")
        for value in wrong:
            with pytest.raises(ValueError, match=f"{knob.name} is .* it must be"):
                begin(key, **{knob.name: value})


def test_an_item_that_was_never_evaluated_is_needed_by_a_forecast_and_not_by_drop():
    cond, uncond = drawn(3, (2, 4, 8, 8))
    table = [[False, True], [False, False], [False, False]]
    assert follow(Skipper(Table(table), Reuse(whole=False)), cond, uncond)[0] == [[True, True], [False, False], [False, False]]
    decisions, filled = follow(Skipper(Table(table), Drop()), cond, uncond)
    assert decisions == table
    assert_close(filled[:, 0], cond[:, 0], 1e-12)
    assert_close(filled[1:, 1], cond[1:, 1], 1e-12)


# Similarity


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 4, 3, 8, 8), (3, 1, 96)], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_similarity_is_the_cosine_of_the_two_outputs(shape, dtype, tolerance):
    at, cond, uncond = moment(shape, dtype=dtype), randn(*shape).to(dtype), randn(*shape, seed=1).to(dtype)
    outputs = (at.d(denoised).double().flatten(1) for denoised in (cond, uncond))
    expected = torch.nn.functional.cosine_similarity(*outputs, dim=1)
    assert_close(torch.tensor(similarities(at, cond, uncond, [0, 1, 2]), dtype=torch.float64), expected, tolerance)
    some = similarities(at, cond, uncond, [2, 0])
    assert_close(torch.tensor(some, dtype=torch.float64), expected[[2, 0]], tolerance)


def test_equal_predictions_agree_fully_and_opposite_ones_not_at_all():
    at = moment((2, 4, 8, 8))
    cond = randn(2, 4, 8, 8)
    assert similarities(at, cond, cond, [0, 1]) == [1, 1]
    assert similarities(at, at.x, at.x, [0, 1]) == [1, 1]  # both outputs zero
    assert similarities(at, at.x, cond, [0, 1]) == [0, 0]  # one of them
    assert similarities(at, cond, 2 * at.x - cond, [0]) == pytest.approx([-1])


# adaptive: similarities are chosen, decisions follow


def test_guidance_ends_at_the_threshold():
    assert adaptive([0.5, 0.89, 0.9, 0.1, 0.1]) == told("11100")
    assert adaptive([0.5, 0.8999, 0.8999, 0.8999, 0.8999]) == told("11111")
    assert adaptive([1.0] * 5, threshold=1.01) == told("11111")


def test_so_many_must_agree_in_a_row():
    curve = [0.95, 0.5, 0.95, 0.95, 0.5, 0.95, 0.95, 0.95, 0.95]
    assert adaptive(curve, patience=1) == told("100000000")
    assert adaptive(curve, patience=2) == told("111100000")
    assert adaptive(curve, patience=3) == told("111111110")


def test_at_least_and_at_most_so_many_steps_are_guided():
    assert adaptive([0.95] * 6, min_guided=4) == told("111100")
    assert adaptive([0.5] * 6, max_guided=2) == told("110000")
    assert adaptive([0.95] * 6, min_guided=3, max_guided=3) == told("111000")
    assert adaptive([0.95] * 6, max_guided=3) == told("100000")


def test_it_looks_again_and_guides_on_where_they_have_come_apart():
    assert adaptive([0.95] * 10, recheck=3) == told("1001001001")
    apart = [0.95, 0.5, 0.5, 0.5, 0.5, 0.95, 0.5, 0.5, 0.5, 0.5]
    assert adaptive(apart, recheck=3) == told("1001110011")


def test_within_the_hysteresis_it_rests_on():
    curve = [0.95, 0.5, 0.86, 0.5, 0.84, 0.86, 0.95, 0.5]
    assert adaptive(curve, recheck=2, hysteresis=0.05) == told("10101110")
    assert adaptive(curve, recheck=2, hysteresis=0.0) == told("10111110")
    assert adaptive(curve, recheck=2, hysteresis=0.2) == told("10101010")


def test_steps_are_counted_not_calls():
    numbers = [0, 0, 1, 1, 2, 2, 3]
    assert adaptive([0.5] * 7, numbers, max_guided=2) == told("1111000")
    assert adaptive([0.95] * 7, numbers, min_guided=2) == told("1111000")


def test_the_pictures_of_a_batch_stop_one_by_one():
    table = [[0.5, 0.95], [0.95, 0.5], [0.5, 0.5]]
    assert adaptive(table) == [[True, True], [True, False], [False, False]]


def test_what_is_reported_names_the_similarity_or_the_count():
    for knobs, said in (({}, "similarity 0.9500 reached 0.9"), ({"max_guided": 1, "threshold": 1.01}, "guided 1 steps")):
        skipper = begin("adaptive", **({"threshold": 0.9, "min_guided": 1, "recheck": 0} | knobs))
        follow(skipper, *agreeing([[0.95], [0.95]]))
        assert skipper.policy.reason == said


def test_more_guided_steps_at_least_than_at_most_are_refused():
    with pytest.raises(ValueError, match="max_guided is 3 and min_guided 5"):
        begin("adaptive", min_guided=5, max_guided=3)
    begin("adaptive", min_guided=5, max_guided=0)


# interval: sigma falls from 1 to 0.1 in ten calls, and percent p is sigma 1 - p


def interval(**knobs):
    cond, uncond = drawn(10, (1, 4, 8, 8))
    decisions, filled = follow(begin("interval", **knobs), cond, uncond)
    needed = [wanted for (wanted,) in decisions]
    for call, wanted in enumerate(needed):
        assert_close(filled[call], (uncond if wanted else cond)[call], 1e-12)
    return needed


def test_guidance_lies_between_two_noise_levels():
    assert interval(unit="sigma", start=0.75, end=0.35) == told("0001111000")
    assert interval(unit="sigma", start=5.0, end=0.0) == told("1111111111")


def test_guidance_lies_between_two_shares_of_sampling():
    assert interval(unit="percent", start=0.25, end=0.65) == told("0001111000")
    assert interval(unit="percent", start=0.0, end=0.45) == told("1111100000")


def test_items_at_other_noise_levels_decide_for_themselves():
    sigmas = torch.tensor([[0.9, 0.5], [0.5, 0.1]], dtype=torch.float64)
    cond, uncond = drawn(2, (2, 4, 8, 8))
    assert follow(begin("interval", unit="sigma", start=0.6, end=0.4), cond, uncond, sigmas)[0] == [
        [False, True],
        [True, False],
    ]


@pytest.mark.parametrize("knobs, said", [
    ({"start": 0.6, "end": 0.6}, "start is 0.6 and end is 0.6: the interval is empty"),
    ({"start": 0.6, "end": 0.5}, "the interval is empty"),
    ({"unit": "sigma", "start": 0.2, "end": 0.6}, "start is 0.2 and end is 0.6: the interval is empty"),
    ({"unit": "sigma", "start": 0.6, "end": 0.6}, "the interval is empty"),
    ({"start": 0.0, "end": 14.6}, "end is 14.6: in percent both lie between 0 and 1"),
])  # fmt: skip
def test_an_interval_that_cannot_be_is_refused(knobs, said):
    with pytest.raises(ValueError, match=said):
        begin("interval", **knobs)


# every_nth


@pytest.mark.parametrize("every, warm_up, expected", [
    (1, 1, "1111111111"), (2, 1, "1010101010"), (2, 2, "1101010101"), (3, 1, "1001001001"), (3, 4, "1111001001"), (4, 1, "1000100010"),
    (100, 1, "1000000000"), (2, 1000, "1111111111"),
])  # fmt: skip
def test_every_nth_step_is_evaluated_after_the_first_ones(every, warm_up, expected):
    assert guided("every_nth", [0.5] * 10, every=every, warm_up=warm_up) == told(expected)


def test_two_calls_of_a_step_are_one_step():
    assert guided("every_nth", [0.5] * 8, [0, 0, 1, 1, 2, 2, 3, 3], every=2, warm_up=1) == told("11001100")


@pytest.mark.parametrize("reuse", ["difference", "unconditional", "nothing"])
def test_what_is_reused_is_what_the_last_evaluation_said(reuse):
    cond, uncond = drawn(6, (2, 4, 8, 8))
    _, filled = follow(begin("every_nth", every=3, warm_up=1, reuse=reuse), cond, uncond)
    for call in range(6):
        last = call - call % 3
        between = {"difference": cond[call] - (cond - uncond)[last], "unconditional": uncond[last], "nothing": cond[call]}
        assert_close(filled[call], uncond[call] if call == last else between[reuse], 1e-12)
