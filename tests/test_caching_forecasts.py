"""What stands in for a cached tensor: exact on the sequences each forecast claims, at uneven steps, for any shape."""

import numpy
import pytest
import torch
from comfyui_distillery.samplers.caching import FORECASTS, POLICIES
from comfyui_distillery.samplers.solvers.momentum import adams_bashforth

from .problems import assert_close, convergence, number, randn

ATS, NEXT = (0.0, 1.0, 1.5, 4.0, 4.2, 7.0), 9.3  # evaluated and forecast
SHAPES = [(), (5,), (2, 3), (2, 4, 8, 8), (2, 4, 3, 8, 8)]
ORDERED = [("newton", order) for order in (1, 2, 3)] + [("adams", order) for order in (1, 2, 3)]

every_forecast = pytest.mark.parametrize("key", FORECASTS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def seen(key, signal, ats=ATS, **knobs):
    """A forecast that has observed ``signal(at)`` at these places."""
    forecast = FORECASTS[key].begin(knobs)
    for at in ats:
        forecast.observe(at, signal(at))
    return forecast


def polynomial(degree, shape=(2, 4, 8, 8)):
    """(the polynomial with random coefficients, its integral from 0)"""
    terms = [(randn(*shape, seed=k), k) for k in range(degree + 1)]
    return lambda t: sum(c * (t / 5) ** k for c, k in terms), lambda t: sum(
        c * (t / 5) ** (k + 1) * 5 / (k + 1) for c, k in terms
    )


def settling(c, shape=(2, 4, 8, 8)):
    a, b = randn(*shape), randn(*shape, seed=1)
    return lambda t: a + b * (c * number(t)).exp()


# What each claims


@every_shape
def test_reuse_is_the_last_value_itself(shape):
    forecast = seen("reuse", lambda t: randn(*shape, seed=int(10 * t)))
    assert forecast.predict(NEXT) is forecast.predict(8.0) is forecast.values[-1]
    assert torch.equal(forecast.predict(NEXT), randn(*shape, seed=70))


@every_shape
@pytest.mark.parametrize("order", [1, 2, 3])
def test_newton_continues_polynomials_of_its_degree(order, shape):
    signal, _ = polynomial(order, shape)
    assert_close(seen("newton", signal, order=order).predict(NEXT), signal(NEXT), 1e-12)


@every_shape
@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_is_the_mean_over_the_stretch_since_the_last_value(order, shape):
    signal, integral = polynomial(order, shape)
    mean = (integral(NEXT) - integral(ATS[-1])) / (NEXT - ATS[-1])
    assert_close(seen("adams", signal, order=order).predict(NEXT), mean, 1e-12)


@every_shape
@pytest.mark.parametrize("order, window", [(1, 2), (1, 4), (2, 4), (3, 4), (3, 6)])
def test_chebyshev_continues_polynomials_of_its_degree(order, window, shape):
    signal, _ = polynomial(order, shape)
    assert_close(seen("chebyshev", signal, order=order, window=window).predict(NEXT), signal(NEXT), 1e-11)


@every_shape
@pytest.mark.parametrize("c", [-2.0, -0.3, -1e-5, 0.0, 1e-5, 0.3])
def test_exponential_continues_exponentials(c, shape):
    signal = settling(c, shape)
    assert_close(seen("exponential", signal).predict(NEXT), signal(NEXT), 1e-9)


@pytest.mark.parametrize("h, h_next", [(0.1, 1.0), (1.0, 0.1), (3.0, 3.0), (1.0, 7.0)])
def test_exponential_finds_its_rate_at_very_uneven_steps(h, h_next):
    for c in (-1.5, -0.2, 0.1):
        forecast = seen("exponential", settling(c), (0.0, h, h + h_next))
        assert_close(forecast.rate, torch.full((2, 1, 1, 1), c, dtype=torch.float64), 1e-9)


def test_chebyshev_through_noise_is_numpys_least_squares():
    values = randn(6)
    for order, window in ((1, 4), (2, 5), (3, 6)):
        forecast = seen("chebyshev", lambda t: values[ATS.index(t)], order=order, window=window)
        fit = numpy.polynomial.Polynomial.fit(ATS[-window:], values[-window:].numpy(), order)
        assert_close(forecast.predict(NEXT), number(fit(NEXT)), 1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_reach_is_the_share_of_the_change_that_newton_believes(order):
    signal, _ = polynomial(order)
    for reach in (0.0, 0.3, 1.0):
        expected = signal(ATS[-1]) + reach * (signal(NEXT) - signal(ATS[-1]))
        assert_close(seen("newton", signal, order=order, reach=reach).predict(NEXT), expected, 1e-12)


def test_ridge_draws_chebyshev_towards_the_mean_of_the_window():
    values = randn(6)
    forecasts = [seen("chebyshev", lambda t: values[ATS.index(t)], ridge=ridge) for ridge in (0.0, 0.1, 1.0, 10.0)]
    mean = values[-4:].mean()
    away = [float((forecast.predict(NEXT) - mean).abs()) for forecast in forecasts]
    assert away == sorted(away, reverse=True) and away[-1] < 0.25 * away[0]
    constant = seen("chebyshev", lambda t: randn(2, 3), ridge=10.0)
    assert_close(constant.predict(NEXT), randn(2, 3), 1e-12)


def test_adams_weights_are_those_of_the_solvers_and_of_the_books():
    for order, book in ((1, [1.5, -0.5]), (2, [23 / 12, -16 / 12, 5 / 12]), (3, [55 / 24, -59 / 24, 37 / 24, -9 / 24])):
        adams = FORECASTS["adams"].begin({"order": order})
        grid = torch.tensor([*ATS, NEXT], dtype=torch.float64)
        uneven = adams_bashforth(grid, len(ATS) - 1, order + 1).flip(0).tolist()
        assert adams.weights(ATS[-order - 1 :], NEXT) == pytest.approx(uneven, abs=1e-11)
        assert adams.weights(tuple(range(order + 1)), order + 1) == pytest.approx(book[::-1], abs=1e-12)


def test_the_published_taylor_factors_are_newtons_line_and_miss_a_parabola():
    signal = lambda t: number(t * t)
    factors, before = [], None
    for at in (0.0, 1.0, 2.0):
        fresh = [signal(at)]
        for k, factor in enumerate(factors[:2]):
            fresh.append((fresh[k] - factor) / (at - before))
        factors, before = fresh, at
    line, parabola = factors[0] + factors[1], factors[0] + factors[1] + factors[2] / 2
    assert seen("newton", signal, (0.0, 1.0, 2.0), order=1).predict(3.0) == line
    assert seen("newton", signal, (0.0, 1.0, 2.0), order=2).predict(3.0) == 9 and parabola == 8


@pytest.mark.parametrize(
    "key, knobs, expected",
    [("reuse", {}, 1), ("exponential", {}, 3), ("chebyshev", {"order": 2, "window": 5}, 3)]
    + [(key, {"order": order}, order + 1) for key, order in ORDERED],
)
def test_order_of_accuracy_at_uneven_steps(key, knobs, expected):
    signal, integral = (lambda t: number(1 / t)), (lambda t: number(t).log())
    errors, counts = [], (10, 20, 40, 80)
    for count in counts:
        ats = tuple(2 - gap / count for gap in (6.1, 5.3, 3.0, 2.2, 0.9, 0.0))
        at = 2 + 0.7 / count
        exact = (integral(at) - integral(2)) / (at - 2) if key == "adams" else signal(at)
        errors.append(float((seen(key, signal, ats, **knobs).predict(at) - exact).abs()))
    assert expected - 0.15 < convergence(errors, counts) < expected + 0.35


# Exponential: what it does where there is no such sequence


def test_each_item_settles_at_a_rate_of_its_own():
    c = torch.tensor([-0.1, -0.9, 0.2], dtype=torch.float64).view(3, 1, 1)
    a, b = randn(3, 4, 5), randn(3, 4, 5, seed=1)
    signal = lambda t: a + b * (c * t).exp()
    assert_close(seen("exponential", signal).predict(NEXT), signal(NEXT), 1e-9)


def test_the_rate_is_that_of_the_least_squares_factor_between_changes():
    values = randn(3, 2, 40)
    values[2] = values[1] + 0.6 * (values[1] - values[0]) + 0.1 * values[2]
    forecast = seen("exponential", lambda t: values[int(t)], (0.0, 1.0, 2.0))
    for item in range(2):
        older, newer = (values[1] - values[0])[item, :, None], (values[2] - values[1])[item, :, None]
        factor = torch.linalg.lstsq(older, newer).solution.item()
        assert_close(forecast.predict(3.0)[item], values[2, item] + factor * newer[:, 0], 1e-11)


def test_a_change_that_turns_round_has_settled_and_growth_is_bounded():
    turning = seen("exponential", lambda t: randn(2, 3) * (-1) ** t, (0.0, 1.0, 2.0))
    assert_close(turning.predict(4.0), randn(2, 3), 1e-6)
    exploding = seen("exponential", lambda t: randn(2, 3) * 100**t, (0.0, 1.0, 2.0))
    assert_close(exploding.predict(3.0), randn(2, 3) * (1e4 + 9900 * number(1.0).exp()), 1e-12)


@every_forecast
@pytest.mark.parametrize("value", [torch.zeros(2, 3), randn(2, 3).float()], ids=["zero", "some"])
def test_a_constant_stays_and_blanks_give_no_nan(key, value):
    assert_close(seen(key, lambda t: value).predict(NEXT), value, 1e-5)


# All of them


@every_forecast
def test_with_less_history_it_is_of_lower_order(key):
    forecast = FORECASTS[key].begin({"order": 3} if key in ("newton", "adams", "chebyshev") else {})
    assert not forecast.ready and forecast.memory == 0
    forecast.observe(0.0, number(5.0))
    assert forecast.ready and forecast.predict(2.5) == 5
    forecast.observe(1.0, number(7.0))
    line = {"reuse": 7, "adams": 8.5}.get(key, 10)  # adams: the line at the middle of 1 to 2.5
    assert_close(forecast.predict(2.5), number(float(line)), 1e-12)


@every_forecast
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_costs_one_rounding_of_the_result(key, dtype):
    knobs = {"order": 3} if key in ("newton", "adams", "chebyshev") else {}
    values = {at: randn(2, 4, 8, 8, seed=int(10 * at)).to(dtype) for at in ATS}
    low = seen(key, values.get, **knobs).predict(NEXT)
    exact = seen(key, lambda t: values[t].double(), **knobs).predict(NEXT)
    assert low.dtype == dtype
    rounding = 60 if dtype == torch.float32 else 0.5
    assert ((low.double() - exact).abs() <= rounding * torch.finfo(dtype).eps * exact.abs() + 1e-4).all()


@every_forecast
def test_nothing_waits_for_the_device(key):
    """Tensors without data: whatever needs a value of theirs in Python fails."""
    forecast = seen(key, lambda t: torch.empty(2, 4, 8, 8, device="meta", dtype=torch.bfloat16))
    assert forecast.predict(NEXT).shape == (2, 4, 8, 8)


@every_forecast
def test_a_second_value_at_a_place_replaces_the_first(key):
    signal = settling(-0.3)
    forecast = seen(key, signal, ATS[:-1])
    forecast.observe(ATS[-1], randn(2, 4, 8, 8, seed=9))
    forecast.observe(ATS[-1], signal(ATS[-1]))
    expected = seen(key, signal)
    if key == "exponential":
        expected.rate = forecast.rate  # kept from the first
    assert torch.equal(forecast.predict(NEXT), expected.predict(NEXT))


@every_forecast
def test_two_runs_agree_streams_stay_apart_and_values_unchanged(key):
    values = {at: randn(2, 4, 8, 8, seed=int(10 * at)) for at in ATS}
    copies = {at: value.clone() for at, value in values.items()}
    one, other = seen(key, values.get), seen(key, lambda t: -values[t])
    assert torch.equal(one.predict(NEXT), seen(key, values.get).predict(NEXT))
    assert torch.equal(other.predict(NEXT), -one.predict(NEXT))
    assert all(torch.equal(values[at], copies[at]) for at in ATS)


@pytest.mark.parametrize(
    "key, knobs, kept",
    [("reuse", {}, 1), ("newton", {"order": 3}, 4), ("adams", {}, 2), ("exponential", {}, 2), ("chebyshev", {"window": 5}, 5)],
)
def test_memory_is_what_is_kept(key, knobs, kept):
    assert seen(key, lambda t: torch.zeros(2, 3, dtype=torch.bfloat16), **knobs).memory == kept * 2 * 3 * 2


@every_forecast
def test_coordinates_must_rise(key):
    with pytest.raises(ValueError, match="at is 6 after 7: coordinates of a run must rise"):
        seen(key, lambda t: randn(2, 3)).observe(6.0, randn(2, 3))


@pytest.mark.parametrize("key, given, said", [
    ("newton", {"order": 0}, "order is 0: it must be a whole number from 1 to 3"),
    ("adams", {"order": 4}, "order is 4"),
    ("chebyshev", {"order": 2, "window": 2}, "order is 2 and window 2: 2 values fix a polynomial of order 1 at most"),
    ("chebyshev", {"window": 9}, "window is 9: it must be a whole number from 2 to 8"),
    ("chebyshev", {"ridge": -1.0}, "ridge is -1.0"),
    ("exponential", {"order": 1}, "unknown setting order=1"),
])  # fmt: skip
def test_bad_settings(key, given, said):
    with pytest.raises(ValueError, match=said):
        FORECASTS[key].begin(given)


def test_facts_are_stated_and_knobs_of_one_name_take_the_same_values():
    """The browser keeps a value where one method follows another."""
    for parts in (POLICIES, FORECASTS):
        ranges = {}
        for part in parts.values():
            assert part.title and part.source and part.good_for
            for knob in part.knobs:
                facts = knob.default, knob.min, knob.max, knob.step, knob.options
                assert ranges.setdefault(knob.name, facts) == facts
