"""Every schedule in SCHEDULES: falls, hits both ends, and is what it says it is."""

import math

import pytest
import torch
from comfyui_distillery.samplers.core import check_sigmas
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.schedules import SCHEDULES

from .problems import EPS, FLOW, assert_close, number

ENDS = {
    "sd": (EPS, 0.03, 14.6), "svd": (EPS, 0.002, 700.0), "flow": (FLOW, 0.003, 1.0), "flow from 0.8": (FLOW, 0.001, 0.8),
}  # fmt: skip
FLOW_ONLY = {"dynamic_shift", "sd3_shift"}
OWN_START = {"leading"}
OWN_END = {"trailing", "leading", "lcm_timesteps", "scm_timesteps", *FLOW_ONLY}  # the last level before 0

KNOBS = {"lcm_timesteps": {"original_steps": 1000}}  # which allows any number of steps

every_schedule = pytest.mark.parametrize("key", SCHEDULES)
RANGES = [
    pytest.param(key, *ends, id=f"{key}-{name}")
    for key in SCHEDULES
    for name, ends in ENDS.items()
    if ends[0].is_flow or key not in FLOW_ONLY
]


def sigmas_of(key, n, sigma_min, sigma_max, path):
    """A schedule, with a table of 1000 timesteps and the 256 tokens of a small picture."""
    table = torch.linspace(math.log(sigma_min), math.log(sigma_max), 1000, dtype=torch.float64).exp()
    if path is FLOW:
        table = torch.linspace(sigma_min, sigma_max, 1000, dtype=torch.float64)
    return SCHEDULES[key](n, sigma_min, sigma_max, path=path, table=table, tokens=256, **KNOBS.get(key, {}))


@pytest.mark.parametrize("key, path, sigma_min, sigma_max", RANGES)
@pytest.mark.parametrize("n", [1, 2, 3, 20, 500])
def test_falls_from_sigma_max_over_sigma_min_to_0(n, key, path, sigma_min, sigma_max):
    sigmas = sigmas_of(key, n, sigma_min, sigma_max, path)
    check_sigmas(sigmas)
    assert sigmas.dtype == torch.float32 and len(sigmas) == n + 1
    assert sigmas[-1] == 0
    if key not in OWN_START:
        assert float(sigmas[0]) == pytest.approx(sigma_max, rel=1e-7)
    if n > 1 and key not in OWN_END:
        assert float(sigmas[-2]) == pytest.approx(sigma_min, rel=1e-6)


@every_schedule
def test_facts_are_stated(key):
    schedule = SCHEDULES[key]
    assert schedule.title and schedule.good_for and "arXiv:" in schedule.source


# Uniform lambda


def test_uniform_lambda_is_k_diffusions_exponential_schedule_on_ve():
    ours = SCHEDULES["uniform_lambda"](20, 0.03, 14.6, path=EPS)
    theirs = torch.linspace(math.log(14.6), math.log(0.03), 20).exp()  # get_sigmas_exponential
    assert torch.allclose(ours[:-1], theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigma_max", [0.9, 1.0])
def test_uniform_lambda_has_even_steps_in_lambda_on_flow(sigma_max):
    path = Path("flow", sigma_first=0.999)
    sigmas = SCHEDULES["uniform_lambda"](12, 0.01, sigma_max, path=path)
    lam = path.lam(path.offset_first(sigmas[:-1].double()))
    assert torch.allclose(lam.diff(), lam.diff().mean(), rtol=1e-3)  # float32 sigmas near 1
    assert lam.diff().min() > 0.3


# EDM rho


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_edm_rho_is_equation_5_in_noise_over_signal_on_both_paths(rho):
    i = torch.arange(12, dtype=torch.float64)
    top, bottom = 80 ** (1 / rho), 0.002 ** (1 / rho)
    expected = (top + i / 11 * (bottom - top)) ** rho
    on_ve = SCHEDULES["edm_rho"](12, 0.002, 80.0, path=EPS, rho=rho)[:-1].double()
    on_flow = SCHEDULES["edm_rho"](12, 0.002 / 1.002, 80 / 81, path=FLOW, rho=rho)[:-1].double()
    assert_close(on_ve / expected, torch.ones_like(i), 1e-6)
    assert_close(on_flow / (1 - on_flow) / expected, torch.ones_like(i), 1e-5)  # float32 sigmas near 1


def test_edm_rho_from_sigma_1_is_the_grid_from_flow_top_with_its_first_level_put_to_1():
    from_1 = SCHEDULES["edm_rho"](12, 0.002, 1.0, path=FLOW, flow_top=40.0)
    from_top = SCHEDULES["edm_rho"](12, 0.002, 40 / 41, path=FLOW)
    assert from_1[0] == 1 and torch.allclose(from_1[1:], from_top[1:], rtol=1e-6, atol=0)


def test_edm_rho_at_large_rho_nears_uniform_lambda():
    def distance(rho):
        near = SCHEDULES["edm_rho"](12, 0.03, 14.6, path=EPS, rho=rho)
        return float((near[:-1] / SCHEDULES["uniform_lambda"](12, 0.03, 14.6, path=EPS)[:-1]).log().abs().max())

    assert distance(100.0) < 0.1 < distance(7.0)


# Cosine


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.25])
@pytest.mark.parametrize("path, bounds", [(EPS, (0.03, 14.6)), (FLOW, (0.003, 0.95))], ids=["eps", "flow"])
def test_cosine_is_the_papers_log_snr_at_even_times(path, bounds, shift):
    sigmas = SCHEDULES["cosine_log_snr"](9, *bounds, path=path, noise_shift=shift)[:-1].double()
    log_snr = 2 * path.lam(sigmas)

    def time_at(value):
        """Where -2 log tan(pi t / 2) + 2 log(1 / shift) has this value, by halving: the paper's formula runs forwards."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            above = -2 * math.log(math.tan(math.pi * middle / 2)) - 2 * math.log(shift) > value
            low, high = (middle, high) if above else (low, middle)
        return low

    times = number([time_at(value) for value in log_snr.tolist()])
    assert_close(times.diff(), times.diff().mean().expand(8), 1e-6)


def test_cosine_is_alpha_bar_of_iddpm():
    """alpha_bar = cos^2 of an angle, arXiv:2102.09672 equation 17: on VP alpha_bar = 1 / (1 + sigma^2), the angle is even."""
    sigmas = SCHEDULES["cosine_log_snr"](30, 0.03, 14.6, path=EPS)[:-1].double()
    angles = (1 / (1 + sigmas**2)).sqrt().acos()
    assert_close(angles.diff(), angles.diff().mean().expand(29), 1e-6)


def test_cosine_needs_no_offset_at_sigma_1_of_flow():
    exact = SCHEDULES["cosine_log_snr"](20, 0.003, 1.0, path=FLOW)
    near = SCHEDULES["cosine_log_snr"](20, 0.003, 1 - 1e-9, path=FLOW)
    assert exact[0] == 1 and torch.allclose(exact, near, atol=1e-6)


# Sigmoid


@pytest.mark.parametrize("kappa", [5.0, 20.0])
def test_sigmoid_is_the_published_grid_where_sigma_min_vanishes(kappa):
    ours = SCHEDULES["sigmoid"](11, 1e-12, 1.0, path=FLOW, kappa=kappa)[:-1].double()
    logistic = [1 / (1 + math.exp(-kappa * (u / 10 - 0.5))) for u in range(10, -1, -1)]
    published = (number(logistic) - logistic[-1]) / (logistic[0] - logistic[-1])
    assert_close(ours, published, 1e-7)
    assert_close(ours + ours.flip(0), torch.ones_like(ours), 1e-7)  # as dense at one end as at the other


def test_sigmoid_at_small_kappa_is_even_in_time():
    ours = SCHEDULES["sigmoid"](11, 0.003, 1.0, path=FLOW, kappa=0.1)[:-1]
    assert torch.allclose(ours, torch.linspace(1, 0.003, 11), atol=2e-4)


@pytest.mark.parametrize("kappa", [5.0, 20.0])
def test_sigmoid_on_ve_is_the_flow_image(kappa):
    on_ve = SCHEDULES["sigmoid"](11, 0.03, 14.6, path=EPS, kappa=kappa)[:-1].double()
    on_flow = SCHEDULES["sigmoid"](11, 0.03 / 1.03, 14.6 / 15.6, path=FLOW, kappa=kappa)[:-1].double()
    assert_close(on_ve / (1 + on_ve), on_flow, 1e-6)


# Bad input


@every_schedule
@pytest.mark.parametrize(
    "message, arguments",
    [
        ("n is 0", (0, 0.1, 1.0, EPS)),
        ("sigma_min is 0", (5, 0.0, 1.0, EPS)),
        ("sigma_min is 2, sigma_max 1", (5, 2.0, 1.0, EPS)),
        ("sigma_max inf", (5, 0.1, math.inf, EPS)),
        ("sigma_min is nan", (5, math.nan, 1.0, EPS)),
        ("sigma_max is 14.6", (5, 0.1, 14.6, FLOW)),
    ],
)
def test_bad_ends(message, arguments, key):
    *ends, path = arguments
    with pytest.raises(ValueError, match=message):
        SCHEDULES[key](*ends, path=path)


@every_schedule
def test_bad_settings(key):
    schedule = SCHEDULES[key]
    with pytest.raises(ValueError, match="unknown setting no_such=20"):
        schedule(5, 0.1, 1.0, path=EPS, no_such=20)
    if schedule.needs_path:
        with pytest.raises(ValueError, match="needs path="):
            schedule(5, 0.1, 1.0)
    if schedule.needs_table:
        with pytest.raises(ValueError, match="needs table=.*Use edm_rho or uniform_lambda"):
            schedule(5, 0.1, 1.0, path=EPS)
    if schedule.needs_tokens:
        with pytest.raises(ValueError, match="needs tokens=.*Connect latent"):
            schedule(5, 0.1, 1.0, path=FLOW)
