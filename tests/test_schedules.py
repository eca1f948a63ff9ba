"""Every schedule in SCHEDULES: falls, hits both ends, and is what it says it is."""

import math

import pytest
import torch
from comfyui_distillery.samplers.core import check_sigmas
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.schedules import SCHEDULES

from .problems import EPS, FLOW

ENDS = [(EPS, 0.03, 14.6), (EPS, 0.002, 700.0), (FLOW, 0.003, 1.0), (FLOW, 0.001, 0.8)]

every_schedule = pytest.mark.parametrize("key", SCHEDULES)
every_end = pytest.mark.parametrize("path, sigma_min, sigma_max", ENDS, ids=["sd", "svd", "flow", "flow from 0.8"])


@every_schedule
@every_end
@pytest.mark.parametrize("n", [1, 2, 3, 20, 500])
def test_falls_from_sigma_max_over_sigma_min_to_0(n, path, sigma_min, sigma_max, key):
    sigmas = SCHEDULES[key](n, sigma_min, sigma_max, path=path)
    check_sigmas(sigmas)
    assert sigmas.dtype == torch.float32 and len(sigmas) == n + 1
    assert sigmas[0] == sigma_max and sigmas[-1] == 0
    if n > 1:
        assert float(sigmas[-2]) == pytest.approx(sigma_min, rel=1e-6)


@every_schedule
def test_facts_are_stated(key):
    schedule = SCHEDULES[key]
    assert schedule.title and schedule.good_for and "arXiv:" in schedule.source


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
    with pytest.raises(ValueError, match="unknown setting kappa=20"):
        schedule(5, 0.1, 1.0, path=EPS, kappa=20)
    if schedule.needs_path:
        with pytest.raises(ValueError, match="needs path="):
            schedule(5, 0.1, 1.0)
