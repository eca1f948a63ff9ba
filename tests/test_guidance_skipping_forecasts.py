"""What stands in for the unconditional prediction at skipped steps: exact where its model holds, item by item, any latent."""

import pytest
import torch
from comfyui_distillery.samplers.guidance.skipping.linear import Fading, evaluated
from comfyui_distillery.samplers.guidance.skipping.low_high import LowHigh, low
from comfyui_distillery.samplers.guidance.skipping.reuse import Reuse
from comfyui_distillery.samplers.guidance.skipping.skip import Skipper

from .problems import assert_close, randn
from .skipping import Table, begin, drawn, follow

SHAPES = [(2, 4, 8, 8), (2, 4, 3, 8, 8), (2, 1, 96), (2, 8, 30)]
RULES = ["every_nth", "linear", "low_high"]
TWICE = [[True, True]] * 2 + [[False, False]] * 4  # two evaluations, then none

every_rule = pytest.mark.parametrize("key", RULES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def decaying(sigmas, rates, shape=(2, 4, 8, 8)):
    """(d_cond, d_uncond) whose difference goes with exp(rate sigma), a rate for each item."""
    cond, _ = drawn(len(sigmas), shape)
    factor = torch.exp(sigmas[:, None] * torch.tensor(rates, dtype=torch.float64))
    return cond, cond - randn(*shape, seed=7) * factor.view(len(sigmas), -1, *[1] * (len(shape) - 1))


# linear: d_uncond = d_cond - k * (d_cond - d_uncond at the last evaluation)


@every_shape
def test_extrapolation_is_exact_where_the_difference_decays_exponentially(shape):
    sigmas = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.3, 0.0001], dtype=torch.float64)
    cond, uncond = decaying(sigmas, (0.5, 4.0), shape)
    _, filled = follow(Skipper(Table(TWICE), Fading(trust=1.0)), cond, uncond, sigmas)
    assert_close(filled[:5], uncond[:5], 1e-12)
    assert_close(filled, uncond, 1e-9)  # the last sigma divides by 0.0001


@pytest.mark.parametrize("trust", [0.0, 0.5, 1.0])
def test_a_constant_difference_is_continued_exactly(trust):
    cond, _ = drawn(6, (2, 4, 8, 8))
    uncond = cond - randn(2, 4, 8, 8, seed=7)
    _, filled = follow(Skipper(Table(TWICE), Fading(trust)), cond, uncond)
    assert_close(filled, uncond, 1e-12)


def test_half_trust_keeps_the_mean_of_the_measured_share_and_all_of_it():
    sigmas = torch.tensor([1.0, 0.8, 0.6, 0.5], dtype=torch.float64)
    cond, uncond = decaying(sigmas, (1.0, 3.0))
    _, filled = follow(Skipper(Table(TWICE), Fading(trust=0.5)), cond, uncond, sigmas)
    last, measured = (cond - uncond)[1], torch.exp(torch.tensor([-0.2, -0.6], dtype=torch.float64)).view(2, 1, 1, 1)
    kept = (1 + measured) / 2
    assert_close(filled[2], cond[2] - kept * last, 1e-12)  # as far on as the two evaluations were apart
    assert_close(filled[3], cond[3] - kept**1.5 * last, 1e-12)


def test_the_measured_share_is_least_squares_over_the_elements():
    cond, uncond = drawn(6, (2, 4, 8, 8))
    uncond[1] = cond[1] - 0.6 * (cond - uncond)[0] - 0.1 * randn(2, 4, 8, 8, seed=7)
    _, filled = follow(Skipper(Table(TWICE), Fading(trust=1.0)), cond, uncond)  # even steps in sigma
    for item in range(2):
        before, last = ((cond - uncond)[call, item].flatten() for call in (0, 1))
        kept = torch.linalg.lstsq(before[:, None], last[:, None]).solution.item()
        assert 0.1 < kept < 1
        assert_close((cond - filled)[2, item].flatten(), kept * last, 1e-12)


@pytest.mark.parametrize("factor, kept", [(1.5, 1.0), (-1.0, 0.01)])
def test_a_difference_never_grows_and_never_turns_round(factor, kept):
    cond, uncond = drawn(6, (2, 4, 8, 8))
    uncond[1] = cond[1] - factor * (cond - uncond)[0]
    _, filled = follow(Skipper(Table(TWICE), Fading(trust=1.0)), cond, uncond)
    assert_close((cond - filled)[2], kept * (cond - uncond)[1], 1e-12)


def test_without_trust_and_after_one_evaluation_it_is_reuse():
    cond, uncond = drawn(6, (2, 4, 8, 8))
    for table, trust in ((TWICE, 0.0), ([[True, True], *[[False, False]] * 5], 1.0)):
        _, reused = follow(Skipper(Table(table), Reuse(whole=False)), cond, uncond)
        _, filled = follow(Skipper(Table(table), Fading(trust)), cond, uncond)
        assert torch.equal(filled, reused)


def test_another_evaluation_at_a_noise_level_replaces_the_difference_and_keeps_the_rate():
    """As Heun's does: its second call of a step and the first of the next share a noise level."""
    sigmas = torch.tensor([1.0, 0.8, 0.8, 0.6, 0.6], dtype=torch.float64)
    cond, uncond = decaying(sigmas, (1.0, 3.0))
    uncond[2:] = cond[2:] - randn(2, 4, 8, 8, seed=8)
    _, filled = follow(Skipper(Table([[True, True]] * 3 + [[False, False]] * 2), Fading(1.0)), cond, uncond, sigmas)
    kept = torch.exp(torch.tensor([-0.2, -0.6], dtype=torch.float64)).view(2, 1, 1, 1)
    for call in (3, 4):
        assert_close(cond[call] - filled[call], kept * (cond - uncond)[2], 1e-12)


@pytest.mark.parametrize(
    "forecast", [lambda: Fading(1.0), lambda: Reuse(False), lambda: Reuse(True), lambda: LowHigh(0.2, 0.2, 0.5)]
)
def test_an_item_that_is_evaluated_at_steps_of_its_own_equals_its_single_run(forecast):
    table = [
        [True, True, False],
        [True, False, True],
        [False, False, True],
        [False, True, False],
        [False] * 3,
        [True, False, False],
    ]
    cond, uncond = drawn(len(table), (3, 4, 8, 8))
    decisions, together = follow(Skipper(Table(table), forecast()), cond, uncond)
    assert decisions[0] == [True] * 3  # nothing to fill in with yet, so the third is needed too
    for item in range(3):
        single = Skipper(Table([row[item : item + 1] for row in table]), forecast())
        _, alone = follow(single, cond, uncond, only=slice(item, item + 1))
        assert_close(alone, together[:, item : item + 1], 1e-13)


def test_the_error_falls_with_the_steps():
    worst = []
    for steps in (20, 40, 80):
        sigmas = torch.linspace(1, 0.1, steps, dtype=torch.float64)
        cond, one = decaying(sigmas, (0.5, 3.0))
        uncond = one + decaying(sigmas, (3.0, 1.0))[1] - cond
        _, filled = follow(begin("linear", every=2, bend=1.0, trust=1.0), cond, uncond, sigmas)
        worst.append(float((filled - uncond)[3:].abs().max()))
    assert worst[1] < 0.6 * worst[0] and worst[2] < 0.6 * worst[1]


# Which steps linear evaluates


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 20, 30, 77])
@pytest.mark.parametrize("bend", [1.0, 2.0, 5.0])
def test_one_step_in_every_is_evaluated_and_the_first_ones(steps, bend):
    for every in (1, 2, 3, 5, 100):
        for warm_up in (1, 2, 4, 1000):
            chosen = sorted(evaluated(steps, every, warm_up, bend))
            assert len(chosen) == max(-(-steps // every), min(warm_up, steps))
            assert chosen[: min(warm_up, steps)] == list(range(min(warm_up, steps))) and chosen[-1] < steps


def test_a_larger_bend_evaluates_earlier():
    assert sorted(evaluated(20, 5, 1, 1.0)) == [0, 5, 10, 15]
    assert sorted(evaluated(20, 5, 1, 2.0)) == [0, 1, 5, 11]
    assert sorted(evaluated(20, 5, 1, 3.0)) == [0, 1, 2, 8]
    assert sorted(evaluated(30, 5, 1, 2.0)) == [0, 1, 3, 8, 13, 21]


# low_high: FasterCache's CFG-Cache


def test_low_frequencies_are_those_of_diffusers_fastercache():
    hook = pytest.importorskip("diffusers.hooks.faster_cache")
    for shape in ((2, 4, 16, 16), (1, 3, 8, 12), (1, 2, 11, 7), (1, 1, 4, 4)):
        latent = randn(*shape)
        # fftshift without axes shifts batch and channels too, and so back again
        coarse, fine = (torch.fft.ifft2(torch.fft.ifftshift(part)).real for part in hook._split_low_high_freq(latent))
        assert_close(low(latent), coarse, 1e-12)
        assert_close(latent - low(latent), fine, 1e-12)


@pytest.mark.parametrize("waves, coarse", [(0, True), (2, True), (3, True), (4, False), (8, False)])
def test_a_wave_is_coarse_or_fine_by_its_number(waves, coarse):
    wave = torch.cos(2 * torch.pi * waves * torch.arange(16, dtype=torch.float64) / 16)
    for latent in (
        wave.expand(1, 2, 16, 16),
        wave.expand(1, 2, 3, 16, 16),
        wave.view(16, 1).expand(1, 2, 16, 16),
        wave.expand(1, 2, 16),
    ):
        assert_close(low(latent), latent if coarse else torch.zeros_like(latent), 1e-12)


def test_the_coarse_part_is_enlarged_before_the_switch_and_the_fine_one_after():
    cond, uncond = drawn(10, (2, 4, 16, 16))
    table = [[True, True], *[[False, False]] * 9]
    _, filled = follow(Skipper(Table(table), LowHigh(0.2, 0.3, 0.5)), cond, uncond)
    both = (cond - uncond)[0]
    for call in range(1, 10):
        expected = both + (0.2 * low(both) if call < 5 else 0.3 * (both - low(both)))
        assert_close((cond - filled)[call], expected, 1e-12)


@every_shape
def test_with_nothing_enlarged_low_high_is_reuse(shape):
    cond, uncond = drawn(6, shape)
    _, reused = follow(begin("every_nth", every=3), cond, uncond)
    _, filled = follow(begin("low_high", every=3, alpha_low=0.0, alpha_high=0.0), cond, uncond)
    assert torch.equal(filled, reused)


def test_packed_latents_are_split_one_by_one():
    shapes = ((2, 4, 16, 16), (2, 2, 5, 8, 8), (2, 8, 30))
    parts = [drawn(6, shape) for shape in shapes]
    cond, uncond = (torch.cat([part[k].reshape(6, 2, 1, -1) for part in parts], 3) for k in (0, 1))
    _, packed = follow(begin("low_high", every=3), cond, uncond, shapes=shapes)
    sizes = [part[0][0, 0].numel() for part in parts]
    for (c, u), piece, shape in zip(parts, packed.split(sizes, dim=3), shapes):
        _, alone = follow(begin("low_high", every=3), c, u)
        assert_close(piece.reshape(6, *shape), alone, 1e-12)


# All that fill in


@every_rule
@every_shape
def test_items_stay_apart(shape, key):
    cond, uncond = drawn(8, shape)
    sigmas = torch.stack([torch.linspace(1, 0.1, 8), torch.linspace(0.9, 0.3, 8)], 1).double()
    _, together = follow(begin(key, every=3), cond, uncond, sigmas)
    for item in range(2):
        _, alone = follow(begin(key, every=3), cond, uncond, sigmas, only=slice(item, item + 1))
        assert_close(alone, together[:, item : item + 1], 1e-13)


@every_rule
@every_shape
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_costs_a_rounding(shape, dtype, key):
    cond, uncond = drawn(8, shape, dtype)
    knobs = {"every": 3} | ({"alpha_low": 0.5} if key == "low_high" else {})
    decisions, filled = follow(begin(key, **knobs), cond, uncond)
    _, exact = follow(begin(key, **knobs), cond.double(), uncond.double())
    assert [False, False] in decisions and filled.dtype == dtype
    assert_close(filled.double(), exact, 40 * torch.finfo(dtype).eps)  # denoised, divided by a sigma of 0.1, and x of its own


@every_rule
def test_blank_predictions_give_no_nan(key):
    blank, some = torch.zeros(6, 2, 4, 8, 8), drawn(6, (2, 4, 8, 8), torch.float32)[0]
    for cond, uncond in ((blank, blank), (blank, some), (some, some)):
        _, filled = follow(begin(key, every=3), cond, uncond)
        assert filled.isfinite().all()


@every_rule
def test_a_second_call_at_a_step_decides_as_the_first(key):
    cond, uncond = drawn(20, (2, 4, 8, 8))
    decisions, filled = follow(begin(key, every=4), cond, uncond, numbers=[call // 2 for call in range(20)], steps=10)
    assert decisions[::2] == decisions[1::2] and [False, False] in decisions
    assert filled.isfinite().all()


@every_rule
def test_the_report_is_told_why(key):
    cond, uncond = drawn(6, (1, 4, 8, 8))
    skipper = begin(key, every=3)
    follow(skipper, cond, uncond)
    assert skipper.policy.reason and skipper.forecast.word in ("reuse", "extrapolate")


@pytest.mark.parametrize("key, given, said", [
    ("linear", {"every": 0}, "every is 0: it must be a whole number from 1 to 100"),
    ("linear", {"every": 2.5}, "every is 2.5: it must be a whole number"),
    ("linear", {"warm_up": 0}, "warm_up is 0"),
    ("linear", {"bend": 0.5}, "bend is 0.5: it must be a number from 1 to 5"),
    ("linear", {"trust": 1.5}, "trust is 1.5: it must be a number from 0 to 1"),
    ("linear", {"trust": float("nan")}, "trust is nan"),
    ("linear", {"alpha_low": 0.2}, "unknown setting alpha_low=0.2"),
    ("low_high", {"every": 101}, "every is 101"),
    ("low_high", {"alpha_low": -0.1}, "alpha_low is -0.1"),
    ("low_high", {"alpha_high": 2.0}, "alpha_high is 2.0"),
    ("low_high", {"switch": 1.1}, "switch is 1.1"),
])  # fmt: skip
def test_bad_settings(key, given, said):
    with pytest.raises(ValueError, match=said):
        begin(key, **given)
