"""When a step is skipped: published schedules and sums of changes, against simulations of their own."""

import numpy
import pytest
import torch
from comfyui_distillery.samplers.caching import POLICIES
from comfyui_distillery.samplers.caching.interval import centred
from comfyui_distillery.samplers.caching.magnitude import resampled
from comfyui_distillery.samplers.caching.policy import Step
from comfyui_distillery.samplers.solvers.momentum import adams_bashforth

from .caching import FREE, begin, evaluated, follow
from .problems import randn

SIGMAS = torch.linspace(1, 0.1, 30, dtype=torch.float64)


# Interval and mask


def test_even_intervals_are_deepcaches():
    for interval in (1, 2, 3, 5, 10):
        decisions = follow(begin("interval", **FREE, interval=interval), 50)
        assert decisions == [step % interval == 0 for step in range(50)]


def test_the_last_of_the_first_steps_is_where_intervals_begin():
    decisions = follow(begin("interval", **(FREE | {"first_steps": 4}), interval=5), 20)
    assert evaluated(decisions) == [0, 1, 2, 3, 8, 13, 18]


def test_centred_intervals_are_near_the_published_ones():
    """DeepCache's own code, whose numbers are complex."""
    for count, centre, power in ((10, 15, 1.4), (16, 15, 1.4), (5, 10, 1.4), (10, 20, 1.2)):
        ys = numpy.linspace((-centre) ** (1 / power), (50 - centre) ** (1 / power), count + 1)
        published = [0, *(int(y.real) + centre for y in (ys**power)[1:-1])]
        ours = centred(50, count, centre, power)
        assert max(abs(a - b) for a, b in zip(ours, published, strict=True)) <= 3


@pytest.mark.parametrize("steps", [9, 20, 37, 50])
def test_centred_intervals_are_densest_at_the_centre(steps):
    for interval in (2, 3, 5, 8):
        for share in (0.0, 0.3, 0.5, 1.0):
            policy = begin("interval", **FREE, interval=interval, spacing="centred", centre=share, power=1.8)
            chosen = evaluated(follow(policy, steps))
            assert len(chosen) == max(1, steps // interval) and chosen[0] == 0
    gaps = numpy.diff(centred(200, 20, 100, 1.8))
    assert gaps.argmin() in range(6, 14) and gaps[0] > 2 * gaps.min() and gaps[-1] > 2 * gaps.min()


def test_a_mask_is_followed_and_its_length_checked():
    mask = tuple(index in (0, 1, 2, 5, 9, 15, 19) for index in range(20))
    assert tuple(follow(POLICIES["mask"].begin(FREE, mask=mask), 20)) == mask
    with pytest.raises(ValueError, match="mask has 20 entries and the run 30 steps: give one entry"):
        follow(POLICIES["mask"].begin({}, mask=mask), 30)


# Sums of changes, against simulations of their own


def test_first_block_compares_with_the_last_evaluation():
    curve = numpy.cumsum(randn(40).abs().numpy()) + 5
    run, expected = None, []
    for value in curve:
        expected.append(run is None or abs(value - run) / run >= 0.2)
        run = value if expected[-1] else run
    change = lambda index, last: {"signal_since_run": 0.0 if last is None else abs(curve[index] - curve[last]) / curve[last]}
    assert follow(begin("first_block", **FREE, block_threshold=0.2), 40, change) == expected and expected.count(False) > 10


@pytest.mark.parametrize(
    "coefficients", [(1.0, 0.0), (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01)]
)
def test_accumulated_is_teacaches_sum(coefficients):
    """The second row are the coefficients for Flux."""
    changes = (0.02 + 0.2 * torch.rand(40, generator=torch.Generator().manual_seed(0))).tolist()
    total, expected = 0.0, []
    for index, change in enumerate(changes):
        total += numpy.poly1d(coefficients)(change)
        expected.append(index == 0 or total >= 0.4)
        total = 0.0 if expected[-1] else total
    policy = POLICIES["accumulated"].begin(FREE | {"sum_threshold": 0.4}, coefficients=coefficients)
    assert follow(policy, 40, lambda index, last: {"signal_since_step": changes[index]}) == expected and False in expected


def test_rate_is_easycaches_sum():
    inputs, outputs = (randn(40, seed=seed).abs().add(0.1).tolist() for seed in (0, 1))
    k, total, expected = None, 0.0, []
    for index in range(40):
        total += 0.0 if k is None else k * inputs[index]
        expected.append(k is None or total >= 2.0)
        if expected[-1]:
            k, total = (None if index == 0 else outputs[index] / 1.5), 0.0

    def measured(index, last):
        known = {} if last is None else {"output_change": outputs[index], "run_input_change": 1.5}
        return {"input_change": inputs[index], **known}

    assert follow(begin("rate", **FREE, rate_threshold=2.0), 40, measured) == expected and expected.count(False) > 5


@pytest.mark.parametrize("steps", [28, 40])
def test_magnitude_is_magcaches_rule(steps):
    ratios = [1.0, *(1 - 0.03 * randn(27).abs()).tolist()]
    product, error, skips, expected = 1.0, 0.0, 0, []
    for index, ratio in enumerate(resampled(ratios, steps)):
        if index >= int(0.2 * steps + 0.5):
            product, skips = product * ratio, skips + 1
            error += abs(1 - product)
        expected.append(not (skips and error < 0.1 and skips <= 3))
        if expected[-1]:
            product, error, skips = 1.0, 0.0, 0
    policy = POLICIES["magnitude"].begin(FREE | {"magnitude_threshold": 0.1, "most_in_a_row": 3}, ratios=ratios)
    assert policy.needs == () and follow(policy, steps) == expected and expected.count(False) > 8


def test_ratios_keep_their_products_at_any_number_of_steps():
    ratios = [1.0, *(1 - 0.05 * randn(27).abs()).tolist()]
    assert resampled(ratios, 28) == pytest.approx(ratios, abs=1e-14)
    for steps in (2, 10, 55, 82):
        new = resampled(ratios, steps)
        assert len(new) == steps and numpy.prod(new) == pytest.approx(numpy.prod(ratios), rel=1e-12)
    assert numpy.prod(resampled(ratios, 55)[:29]) == pytest.approx(numpy.prod(ratios[:15]), rel=1e-12)


def test_a_measured_ratio_goes_on_per_step():
    policy = begin("magnitude", **FREE, retention=0.0, magnitude_threshold=0.5)
    for index, ratio in ((0, None), (1, 0.9), (4, 0.9**3)):
        policy.ran(Step(index, 20, 1.0, residual_ratio=ratio))
    for index in (5, 6):
        assert not policy.decide(Step(index, 20, 1.0))
        policy.skipped(Step(index, 20, 1.0))
    assert policy.total == pytest.approx((1 - 0.9) + (1 - 0.9**2))


# Stability: Adams-Bashforth of order 3 in sigma foretells the latents


def stability(steps=SIGMAS, threshold=1e-9, trajectory=None):
    policy, decisions = begin("stability", **FREE, stability_threshold=threshold), []
    for index, sigma in enumerate(steps.tolist()):
        x, d = trajectory(sigma)
        decisions.append(policy.decide(Step(index, len(steps), sigma, latent_error=policy.observe(x, None, sigma))))
        if decisions[-1]:
            policy.observe(x, d, sigma)
    return decisions


def test_slopes_that_are_a_parabola_in_sigma_are_foretold_exactly_at_uneven_steps():
    a, b, c = (randn(2, 4, 8, 8, seed=seed) for seed in range(3))
    d_of = lambda s: a + b * s + c * s * s
    x_of = lambda s: a * s + b * s**2 / 2 + c * s**3 / 3
    assert evaluated(stability(SIGMAS**1.7, trajectory=lambda s: (x_of(s), d_of(s)))) == [0, 1, 2]
    cubic = lambda s: (x_of(s) + a * s**4 / 4, d_of(s) + a * s**3)
    assert all(stability(SIGMAS**1.7, trajectory=cubic))


def test_its_error_is_the_distance_over_the_movement_of_the_worst_item():
    xs, ds = randn(4, 3, 4, 8, 8), randn(4, 3, 4, 8, 8, seed=1)
    sigmas = [1.0, 0.8, 0.5, 0.4]
    policy = begin("stability", **FREE)
    for x, d, sigma in zip(xs[:3], ds, sigmas):
        policy.observe(x, d, sigma)
    off = policy.observe(xs[3], None, sigmas[3])
    weights = adams_bashforth(torch.tensor(sigmas, dtype=torch.float64), 2, 3).view(3, 1, 1, 1, 1)
    predicted = xs[2] - 0.1 * (weights * ds[:3].flip(0)).sum(0)
    norm = lambda x: x.flatten(1).norm(dim=1)
    assert torch.allclose(policy.error, norm(xs[3] - predicted) / norm(xs[3] - xs[2]), rtol=1e-12)
    limit = float(off)
    assert limit == float(policy.error.max())
    step = Step(3, 20, 0.4, latent_error=limit)
    for threshold, ran in ((limit * 1.0001, False), (limit * 0.9999, True)):
        policy.stability_threshold = threshold
        assert policy.decide(step) == ran
    assert policy.memory == 4 * xs[0].nbytes


def test_noise_is_never_stable_and_a_sigma_that_rises_begins_again():
    draws = iter(range(1000))
    assert all(stability(threshold=0.3, trajectory=lambda s: (randn(2, 4, 8, 8, seed=next(draws)), randn(2, 4, 8, 8))))
    line = lambda s: (randn(1, 4, 8, 8) * s, randn(1, 4, 8, 8))
    twice = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.9, 0.8, 0.7, 0.6])
    assert stability(twice, trajectory=line) == [True] * 3 + [False] * 2 + [True] * 3 + [False]
