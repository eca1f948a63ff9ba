"""Timestep spacing and resolution shifts against diffusers' schedulers, from the same betas, and against the papers."""

import math

import pytest
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.schedules import SCHEDULES
from comfyui_distillery.samplers.schedules.timesteps import levels_at

from .problems import EPS, FLOW, assert_close, number

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ["trailing", "leading", "linspace"]


def vp_table():
    """Noise levels of SD1's 1000 timesteps, rising."""
    betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    return ((1 - alphas) / alphas).sqrt()


def flow_table(shift, count=1000):
    """As core builds it: the shifted times 1 / count to 1."""
    time = torch.arange(1, count + 1, dtype=torch.float64) / count
    return shift * time / (1 + (shift - 1) * time)


def scheduled(key, n, path, table, **knobs):
    return SCHEDULES[key](n, float(table[0]), float(table[-1]), path=path, table=table, **knobs)


def for_tokens(key, n, tokens, **knobs):
    return SCHEDULES[key](n, 0.003, 1.0, path=FLOW, tokens=tokens, **knobs)


# Spacing on models with a table. Not 48 steps: timestep 937.5 is exactly between two, and numpy.arange slightly below it


@pytest.mark.parametrize("n", [1, 3, 4, 7, 16, 20, 30, 999])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_trailing_and_leading_are_diffusers_euler(spacing, offset, n):
    theirs = EulerDiscreteScheduler(**BETAS, timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(n)
    ours = scheduled(spacing, n, EPS, vp_table(), **({"steps_offset": offset} if spacing == "leading" else {}))
    assert torch.allclose(ours, theirs.sigmas, rtol=2e-5, atol=0)  # its betas are float32


@pytest.mark.parametrize("n", [2, 3, 7, 16, 20, 30])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_visits_the_timesteps_of_diffusers_ddim(spacing, n):
    theirs = DDIMScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1)
    theirs.set_timesteps(n)
    assert torch.equal(scheduled(spacing, n, EPS, vp_table()), torch.cat([vp_table()[theirs.timesteps], number([0.0])]).float())


def test_the_papers_table_2():
    """S = 10 of T = 1000, timesteps counted from 1 there."""
    rows = {
        "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
        "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
        "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
    }
    for spacing, row in rows.items():
        expected = vp_table()[torch.tensor(row) - 1].float()
        ours = scheduled(spacing, 10, EPS, vp_table(), **({"steps_offset": 0} if spacing == "leading" else {}))
        assert torch.equal(ours[:-1], expected), spacing


# Spacing on flow


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n", [1, 3, 4, 7, 30])
def test_trailing_on_flow_is_diffusers_with_flux_sigmas(n, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).tolist())
    assert_close(scheduled("trailing", n, FLOW, flow_table(shift)), theirs.sigmas, 3e-6)


@pytest.mark.parametrize("n", [2, 3, 7, 30])
def test_linspace_on_flow_is_diffusers_default(n):
    """At shift 1; elsewhere diffusers shifts its last level twice, and ours ends at the model's own."""
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(n)
    assert_close(scheduled("linspace", n, FLOW, flow_table(1.0)), theirs.sigmas, 1e-6)
    shifted = scheduled("linspace", n, FLOW, flow_table(3.0))
    assert float(shifted[-2]) == pytest.approx(0.003 / 1.002, rel=1e-6)


def test_leading_on_flow_climbs_from_the_first_time_in_whole_steps():
    ours = scheduled("leading", 7, FLOW, flow_table(3.0), steps_offset=0).double()
    time = torch.tensor([6 * 142 + 1, 5 * 142 + 1, 4 * 142 + 1, 3 * 142 + 1, 2 * 142 + 1, 143, 1, 0], dtype=torch.float64) / 1000
    assert_close(ours, 3 * time / (1 + 2 * time), 1e-6)


@pytest.mark.parametrize("count", [1000, 10000])
def test_flow_timesteps_are_diffusers_whatever_the_length_of_the_table(count):
    steps = [1000.0, 757.0, 522.0, 0.5]
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(timesteps=steps)
    assert_close(levels_at(number(steps), FLOW, flow_table(5.0, count)), theirs.sigmas[:-1].double(), 2e-5)


def test_listed_timesteps_are_diffusers():
    steps = [999.0, 759.0, 499.0, 259.0]  # LCM's, at 4 of 50
    theirs = EulerDiscreteScheduler(**BETAS)
    theirs.set_timesteps(timesteps=steps)
    assert torch.allclose(levels_at(number(steps), EPS, vp_table()).float(), theirs.sigmas[:-1], rtol=2e-5, atol=0)
    between = levels_at(number([500.5]), Path("v"), vp_table())
    assert_close(between, (vp_table()[500] * vp_table()[501]).sqrt()[None], 1e-12)


# Shifts by resolution


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens, mu", [(256, 0.5), (2176, 0.825), (4096, 1.15), (7936, 1.8)])  # Flux's line, by hand
@pytest.mark.parametrize("n", [1, 4, 28])
def test_dynamic_shift_is_diffusers_use_dynamic_shifting(n, tokens, mu, kind):
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).tolist(), mu=mu)
    assert_close(for_tokens("dynamic_shift", n, tokens, time_shift_type=kind), theirs.sigmas, 1e-6)


def test_sd3_shift_is_equation_23():
    """At 4 times the tokens the same time has half the signal over noise: sqrt(m / n) is 2."""
    small = for_tokens("sd3_shift", 12, 1024, shift=3.0, reference_tokens=1024)[1:-1].double()
    large = for_tokens("sd3_shift", 12, 4096, shift=3.0, reference_tokens=1024)[1:-1].double()
    assert_close(2 * small / (1 + small), large, 1e-6)
    assert_close(FLOW.lam(small) - math.log(2), FLOW.lam(large), 1e-5)
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain.set_timesteps(sigmas=torch.linspace(1, 1 / 12, 12).tolist())
    assert_close(small.float(), plain.sigmas[1:-1], 1e-6)


@pytest.mark.parametrize("key", ["dynamic_shift", "sd3_shift"])
def test_a_shifted_grid_from_lower_noise_is_even_before_the_shift(key):
    shift = {"dynamic_shift": math.exp(0.5), "sd3_shift": 0.75}[key]
    sigmas = SCHEDULES[key](8, 0.003, 0.8, path=FLOW, tokens=256).double()
    time = sigmas / (shift + (1 - shift) * sigmas)
    assert_close(time.diff(), time.diff().mean().expand(8), 1e-6)


# Bad input


@pytest.mark.parametrize("spacing", SPACINGS)
def test_more_steps_than_timesteps(spacing):
    with pytest.raises(ValueError, match="steps / denoise is 1001, and this model has 1000 timesteps.*Lower steps or"):
        scheduled(spacing, 1001, EPS, vp_table())


@pytest.mark.parametrize(
    "message, key, path, knobs",
    [
        ("steps_offset is 100: with 500 steps the first would be timestep 1098", "leading", EPS, {"steps_offset": 100}),
        ("Dynamic shift is for flow models, and this model predicts eps", "dynamic_shift", EPS, {}),
        ("SD3 shift is for flow models.*cosine_log_snr", "sd3_shift", EPS, {}),
        ("base_tokens is 4096, max_tokens 4096", "dynamic_shift", FLOW, {"base_tokens": 4096}),
        ("base_shift is 0, max_shift 0: .* shift 0 at", "dynamic_shift", FLOW,
         {"time_shift_type": "linear", "base_shift": 0.0, "max_shift": 0.0}),
    ],
)  # fmt: skip
def test_bad_knobs(message, key, path, knobs):
    table = vp_table() if path is EPS else flow_table(1.0)
    with pytest.raises(ValueError, match=message):
        SCHEDULES[key](500, 0.03, float(table[-1]), path=path, table=table, tokens=256, **knobs)


@pytest.mark.parametrize("path, table, wrong, last", [(EPS, vp_table(), 1000, 999), (FLOW, flow_table(1.0), 1001, 1000)])
def test_timesteps_out_of_range(path, table, wrong, last):
    with pytest.raises(ValueError, match=rf"points\[0\] is {wrong}: this model's timesteps go from 0 to {last}"):
        levels_at(number([float(wrong), 5.0]), path, table)
