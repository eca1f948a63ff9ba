"""When a step is skipped: what all policies have in common, the error budget, and bad settings."""

import math
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from comfyui_distillery.samplers.caching import POLICIES
from comfyui_distillery.samplers.caching.adams import Adams
from comfyui_distillery.samplers.caching.policy import Step, change, error
from comfyui_distillery.samplers.caching.presets import PRESETS

from .caching import FREE, INVITING, begin, follow
from .problems import randn

THRESHOLDS = {
    "first_block": "block_threshold", "accumulated": "sum_threshold", "magnitude": "magnitude_threshold",
    "rate": "rate_threshold", "stability": "stability_threshold", "budget": "budget",
}  # fmt: skip

every_policy = pytest.mark.parametrize("key", POLICIES)
with_threshold = pytest.mark.parametrize("key, name", THRESHOLDS.items())


# All of them


@every_policy
def test_the_first_and_last_steps_are_evaluated_and_so_many_skipped_in_a_row(key):
    wanted = {"first_steps": 4, "last_steps": 3, "most_in_a_row": 2, **({"interval": 50} if key == "interval" else {})}
    decisions = follow(begin(key, 30, **wanted), 30)
    assert all(decisions[:4]) and all(decisions[-3:])
    runs = "".join("1" if ran else "0" for ran in decisions).split("1")
    assert max(map(len, runs)) == 2 and decisions.count(False) >= 14


@every_policy
def test_few_steps_are_never_skipped_unless_asked(key):
    assert all(follow(begin(key, 8), 8))
    assert not all(follow(begin(key, 9), 9)) and not all(follow(begin(key, 8, min_steps=8), 8))


@every_policy
def test_neutral_settings_evaluate_every_step(key):
    policy = POLICIES[key]
    assert not policy.is_neutral({})
    if key == "mask":  # there, all True
        assert all(follow(policy.begin(FREE, mask=(True,) * 30), 30))
    else:
        assert policy.is_neutral(policy.neutral) and all(follow(begin(key, **FREE, **policy.neutral), 30))


@every_policy
def test_two_runs_agree_every_decision_has_a_reason_and_asking_twice_changes_nothing(key):
    one, other = begin(key), begin(key)
    measured = lambda index, last: INVITING | {"signal_since_step": 0.04, "signal_since_run": 0.05, "input_change": 0.01}
    expected = follow(one, 20, measured)
    asked = other.decide

    def decide(step):
        first = asked(step)
        assert asked(step) == first and other.reason
        return first

    other.decide = decide
    assert follow(other, 20, measured) == expected and False in expected


@with_threshold
def test_what_is_not_measured_or_no_number_is_evaluated(key, name):
    nothing = lambda index, last: {}
    none = follow(begin(key, **FREE), 20, nothing, latents=lambda sigma: (randn(1, 2, 3, 3) * float("nan"),) * 2)
    assert all(none)
    assert all(follow(begin(key, **FREE), 20, lambda index, last: dict.fromkeys(INVITING, float("nan")),
                      latents=lambda sigma: (randn(1, 2, 3, 3) * float("nan"),) * 2))  # fmt: skip


@every_policy
def test_needs_are_fields_of_a_step(key):
    needs = begin(key).needs
    assert set(needs) <= {field.name for field in fields(Step)} | {"latents"}
    only = {name: value for name, value in INVITING.items() if name in needs}
    assert follow(begin(key), 20, lambda index, last: only) == follow(begin(key), 20)


def rising(index, last):
    """Changes that grow along a run: the signal is index^1.5, relative to 40, the others likewise."""
    signal = lambda i: (i**1.5) / 40
    gap = index - (last or 0)
    return {
        "input_change": signal(index + 1) - signal(index), "signal_since_step": signal(index + 1) - signal(index),
        "signal_since_run": signal(index) - signal(last or 0), "residual_ratio": 0.98**gap, "output_change": 0.03 * gap,
        "run_input_change": 0.1 * gap, "forecast_error": 0.02 * gap, "speed": 20.0,
    }  # fmt: skip


def bent(sigma):
    """A trajectory whose slope turns: d follows sigma^3, as its own tangent."""
    slope = randn(1, 4, 8, 8) * sigma**3
    return slope, randn(1, 4, 8, 8) * sigma**4 / 4 - sigma * slope


@with_threshold
def test_a_larger_threshold_never_evaluates_more(key, name):
    counts = []
    for threshold in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 1.0, 3.0):
        counts.append(follow(begin(key, **FREE, **{name: threshold}), 40, rising, bent).count(True))
    assert counts == sorted(counts, reverse=True) and counts[0] == 40 and counts[-1] < 12 and len(set(counts)) > 4


def test_changes_of_large_tensors_in_half_precision_are_no_overflow():
    """Their sums are far beyond 65504."""
    old = torch.full((1, 4096, 64), 2.0, dtype=torch.float16)
    assert float(change(old + 0.5, old)) == pytest.approx(0.25)
    assert float(error([old + 0.5, old], [old, old])) == pytest.approx(0.125)
    assert float(change(old.double() * (1 + 1e-12), old.double())) == pytest.approx(1e-12, rel=1e-3)


# Budget


def test_the_budget_is_never_exceeded_and_is_a_simulation_of_its_own():
    """Errors grow with distance^1.5, count by the length of the step, add up within a stretch and as squares between stretches."""
    for seed in range(5):
        errors, speeds = ((0.1 * randn(40, seed=seed + shift).abs() + 0.01).tolist() for shift in (0, 7))
        sigmas = [(1 - index / 40) ** 1.5 for index in range(41)]
        policy, stretches, known, last = begin("budget", **FREE, budget=0.02), [0.0], None, None
        for index in range(40):
            step = Step(index, 40, sigmas[index], sigma_next=sigmas[index + 1])
            expected = known and known[0] * ((index - last) / known[1]) ** 1.5 * speeds[last] * (sigmas[index] - sigmas[index + 1])
            if policy.decide(step):
                policy.ran(replace(step, forecast_error=errors[index], forecast_distance=index and index - last, speed=speeds[index]))
                known, last = (errors[index], index - last) if index else None, index
                stretches.append(0.0)
            else:
                assert policy.predicted == pytest.approx(expected)
                stretches[-1] += expected
                policy.skipped(step)
            total = sum(stretch**2 for stretch in stretches) ** 0.5
            assert total < 0.02 * ((index + 1) / 40) ** 0.5
            assert math.hypot(policy.spent, policy.stretch) == pytest.approx(total)
        assert total > 0.005


@pytest.mark.parametrize("power", [1.0, 2.5])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_final_error_is_of_the_size_of_the_budget(power, noise):
    """Slopes that turn as sigma falls, some of it at random, Euler's steps, and the line that Adams continues."""
    steps, sigmas = 30, [(1 - index / 30) ** power for index in range(31)]
    parts = [randn(400, seed=seed) for seed in range(4)]
    wanders = [noise * randn(400, seed=10 + index) for index in range(steps)]
    slopes = [parts[0] + parts[1] * s + parts[2] * math.sin(3 * s) + wander for s, wander in zip(sigmas, wanders)]
    exact = parts[3] + sum((low - high) * slope for high, low, slope in zip(sigmas, sigmas[1:], slopes))
    counts = []
    for budget in (0.005, 0.01, 0.02, 0.05):
        policy, forecast, x, evaluations = begin("budget", **(FREE | {"last_steps": 1}), budget=budget), Adams(1), parts[3], 0
        for index, (high, low) in enumerate(pairwise(sigmas)):
            step, slope = Step(index, steps, high, sigma_next=low), slopes[index]
            if policy.decide(step):
                off = error([forecast.predict(index)], [slope]) if forecast.ready else None
                known = {} if off is None else {"forecast_error": float(off), "forecast_distance": index - forecast.ats[-1]}
                policy.ran(replace(step, **known, speed=float(slope.norm() / x.norm())))
                forecast.observe(index, slope)
                evaluations += 1
            else:
                slope = forecast.predict(index)
                policy.skipped(step)
            x = x + (low - high) * slope
        assert budget / 5 < float((x - exact).norm() / exact.norm()) < 3 * budget
        counts.append(evaluations)
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] and counts[-1] < 14


# Presets


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_is_neutral_at_0_and_asks_for_more_the_stronger_it_is(preset):
    policy = POLICIES[preset.policy]
    assert policy.is_neutral(preset.policy_knobs(0.0))
    values = [preset.policy_knobs(strength)[preset.scaled] for strength in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == sorted(set(values)) and values[2] == preset.middle
    for strength in (0.05, 0.5, 1.0):
        policy.begin(preset.policy_knobs(strength))


# Bad input


@pytest.mark.parametrize("key, given, said", [
    ("interval", {"interval": 0}, "interval is 0: it must be a whole number from 1 to 100"),
    ("interval", {"spacing": "quadratic"}, "spacing is 'quadratic': it must be one of even, centred"),
    ("first_block", {"block_threshold": -0.1}, "block_threshold is -0.1"),
    ("first_block", {"first_steps": 0}, "first_steps is 0: it must be a whole number from 1 to 1000"),
    ("rate", {"rate_threshold": float("nan")}, "rate_threshold is nan"),
    ("budget", {"budget": "much"}, "budget is 'much': it must be a number"),
    ("stability", {"order": 3}, "unknown setting order=3"),
])  # fmt: skip
def test_bad_settings(key, given, said):
    with pytest.raises(ValueError, match=said):
        begin(key, **given)


def test_bad_tables():
    with pytest.raises(ValueError, match=r"ratios\[1\] is 0.0: the ratio of two norms must be finite and above 0"):
        POLICIES["magnitude"].begin({}, ratios=(1.0, 0.0))
    with pytest.raises(ValueError, match="coefficients is .*: give one finite number or more"):
        POLICIES["accumulated"].begin({}, coefficients=())
