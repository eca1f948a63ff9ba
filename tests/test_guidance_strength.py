"""Rules about how strong guidance is: the published statistics, and diffusers where it has the rule."""

from dataclasses import replace

import pytest
import torch
from comfyui_distillery.samplers.core import append_dims, batch_dims
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.frequency import low_pass
from comfyui_distillery.samplers.guidance.threshold import quantile_of
from comfyui_distillery.samplers.path import PREDICTIONS, Path

from .guiding import guide, moment, predictions
from .problems import EPS, FLOW, PATHS, assert_close, number

SHAPES = [(3, 4, 8, 8), (3, 4, 3, 8, 8), (3, 1, 96)]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def plain(cond, uncond, scale):
    return uncond + scale * (cond - uncond)


def std(x):
    return x.std(batch_dims(x))


# Rescale: Lin et al. 2023, equations 15 and 16.


@every_shape
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("on", ["velocity", "output", "denoised"])
def test_rescale_gives_the_result_the_spread_of_the_conditional_prediction(on, prediction, shape):
    path, (cond, uncond) = Path(prediction, sigma_data=0.5 if prediction == "edm" else 1.0), predictions(shape)
    at = moment(shape, path)
    full, some = (RULES["rescale"](cond, uncond, 5.0, at=at, phi=phi, on=on) for phi in (1.0, 0.7))
    seen_by = Path("v") if on == "velocity" and prediction == "eps" else path

    def seen(denoised):
        return denoised if on == "denoised" else seen_by.output(denoised, at.x, at.sigma)

    guided = seen(plain(cond, uncond, 5.0))
    assert_close(std(seen(full)), std(seen(cond)), 1e-11)
    assert_close(seen(full), guided * append_dims(std(seen(cond)) / std(guided), guided), 1e-11)
    assert_close(some, 0.3 * plain(cond, uncond, 5.0) + 0.7 * full, 1e-11)


def test_rescale_is_diffusers_in_each_parametrisation():
    rescale_noise_cfg = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    cond, uncond = predictions((3, 4, 8, 8))
    for path, on in ((FLOW, "velocity"), (EPS, "output"), (Path("v"), "velocity")):
        at = moment(cond.shape, path)
        expected = rescale_noise_cfg(plain(cond, uncond, 5.0), cond, 0.7)
        denoised = (path.denoised(output, at.x, at.sigma) for output in (cond, uncond))
        got = path.output(RULES["rescale"](*denoised, 5.0, at=at, phi=0.7, on=on), at.x, at.sigma)
        assert_close(got, expected, 1e-11)


# Dynamic thresholding: Imagen, and for latents.


def test_quantile_is_torchs():
    values = predictions((3, 4, 101))[0]
    for share in (0.5, 0.731, 0.995, 1.0):
        assert_close(quantile_of(values, share), torch.quantile(values, share, dim=-1, keepdim=True), 1e-14)


def test_pixels_within_the_range_are_left_alone_and_others_brought_back():
    small, large = (size * predictions((1, 3, 32, 32))[0].clamp(-1, 1) for size in (0.2, 8.0))
    cond, uncond = torch.cat([small, large]), torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    result = guide("dynamic_threshold", [(cond, uncond)], 5.0, form="pixel", quantile=0.9)[0]
    assert torch.equal(result[0], 5 * cond[0])
    assert result[1].abs().max() == 1
    limit = torch.quantile((5 * cond[1]).abs().flatten(), 0.9)
    assert_close(result[1], (5 * cond[1]).clamp(-limit, limit) / limit, 1e-13)


@every_shape
def test_a_channel_of_a_latent_keeps_the_range_of_the_mimicked_scale(shape):
    cond, uncond = predictions(shape)
    cond = cond * torch.linspace(0.2, 3, shape[1], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    result = guide("dynamic_threshold", [(cond, uncond)], 8.0, mimic_scale=3.0, quantile=0.9)[0]
    guided, mimic = plain(cond, uncond, 8.0).flatten(2), plain(cond, uncond, 3.0).flatten(2)

    def spread(x):
        return torch.quantile((x - x.mean(2, keepdim=True)).abs(), 0.9, dim=2)

    assert (spread(guided) > 1.5 * spread(mimic)).all()
    assert_close(spread(result.flatten(2)), spread(mimic), 1e-12)
    assert_close(result.flatten(2).mean(2), guided.mean(2), 1e-12)


def test_mimicking_the_scale_itself_or_a_larger_one_changes_nothing():
    cond, uncond = predictions((2, 4, 8, 8))
    assert_close(guide("dynamic_threshold", [(cond, uncond)], 4.0, mimic_scale=4.0)[0], plain(cond, uncond, 4.0), 0)
    assert_close(guide("dynamic_threshold", [(cond, 0 * uncond)], 4.0, mimic_scale=9.0)[0], 4 * cond, 0)


# MAMBO-G.


@every_shape
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_magnitude_aware_is_diffusers(path, shape):
    mambo_guidance = pytest.importorskip("diffusers.guiders.magnitude_aware_guidance").mambo_guidance
    (cond, uncond), at = predictions(shape), moment(shape, path)
    cond = uncond + 0.1 * append_dims(number([1.0, 2.0, 4.0]), cond) * cond
    denoised = (at.x - append_dims(at.sigma, at.x) * d for d in (cond, uncond))
    got = at.d(RULES["magnitude_aware"](*denoised, 9.0, at=at, alpha=8.0))
    expected = mambo_guidance(cond.flatten(2), uncond.flatten(2), 9.0, alpha=8.0)  # it fails on more than three axes
    assert_close(got, expected.view(shape), 1e-12)


# Schedules.


def scale_of(result, cond, uncond):
    return (result - uncond) / (cond - uncond)


def test_power_cosine_is_mdts_and_each_item_has_its_own_time():
    at, (cond, uncond) = moment((3, 4, 8, 8)), predictions((3, 4, 8, 8))
    t = at.sigma
    for power in (1.0, 4.0):
        got = scale_of(RULES["scale_schedule"](cond, uncond, 5.0, at=at, shape="power_cosine", power=power), cond, uncond)
        expected = 1 + 4 * (1 - torch.cos(torch.pi * (1 - t) ** power)) / 2
        assert_close(got, append_dims(expected, got).expand_as(got), 1e-9)
    for sigma, ends in ((1.0, cond), (0.0, plain(cond, uncond, 5.0))):
        clock = replace(at, sigma=torch.full((3,), sigma, dtype=torch.float64))
        assert_close(RULES["scale_schedule"](cond, uncond, 5.0, at=clock, power=2.0), ends, 1e-12)


def test_power_0_is_constant():
    cond, uncond = predictions((3, 4, 8, 8))
    assert_close(guide("scale_schedule", [(cond, uncond)], 5.0, power=0.0)[0], plain(cond, uncond, 5.0), 1e-12)


def test_linear_goes_from_the_first_scale_to_the_samplers():
    cond, uncond = predictions((2, 4, 8, 8))
    results = guide("scale_schedule", [(cond, uncond)] * 5, 6.0, shape="linear", first_scale=2.0)
    for result, scale in zip(results, (2.0, 3.0, 4.0, 5.0, 6.0), strict=True):
        assert_close(result, plain(cond, uncond, scale), 1e-12)
    assert_close(guide("scale_schedule", [(cond, uncond)], 6.0, shape="linear")[0], plain(cond, uncond, 6.0), 1e-12)


def test_frames_go_from_the_first_scale_to_the_samplers_and_pictures_have_the_whole():
    cond, uncond = predictions((2, 4, 5, 8, 8))
    result = guide("scale_schedule", [(cond, uncond)], 3.0, shape="frames", first_scale=1.0)[0]
    for frame, scale in enumerate((1.0, 1.5, 2.0, 2.5, 3.0)):
        assert_close(result[:, :, frame], plain(cond, uncond, scale)[:, :, frame], 1e-12)
    for picture in ((2, 4, 8, 8), (2, 4, 1, 8, 8)):
        cond, uncond = predictions(picture)
        assert_close(guide("scale_schedule", [(cond, uncond)], 3.0, shape="frames")[0], plain(cond, uncond, 3.0), 1e-12)


# Frequency-decoupled guidance.


@pytest.mark.parametrize("octaves", [1, 2])
def test_frequency_is_diffusers_with_its_laplacian_pyramid(octaves):
    guiders = pytest.importorskip("diffusers.guiders")
    pytest.importorskip("kornia")
    cond, uncond = predictions((2, 4, 16, 32))  # powers of two: kornia pads others
    guider = guiders.FrequencyDecoupledGuidance(guidance_scales=[10.0] * octaves + [5.0])
    guider.set_state(step=0, num_inference_steps=10, timestep=None)
    got = guide("frequency", [(cond, uncond)], 10.0, low=4 / 9, octaves=octaves)[0]
    assert_close(got, guider.forward(cond, uncond).pred, 1e-6)


@every_shape
def test_low_and_high_guide_two_parts_that_add_up(shape):
    cond, uncond = predictions(shape)
    low, high, both = (
        guide("frequency", [(cond, uncond)], 5.0, low=a, high=b)[0] - cond for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    )
    assert_close(low + high, both, 1e-12)
    assert min(low.abs().max(), high.abs().max()) > 0.1


def test_a_flat_difference_is_low_and_a_chequered_one_high():
    cond = predictions((1, 2, 16, 16))[0]
    chequered = torch.ones(16, 16, dtype=torch.float64).cumsum(0).add(torch.arange(16)).remainder(2) * 2 - 1
    for change, part in ((torch.ones_like(cond), "low"), (chequered.expand_as(cond), "high")):
        other = {"low": "high", "high": "low"}[part]
        result = guide("frequency", [(cond, cond - change)], 5.0, **{part: 0.0, other: 1.0})[0]
        assert (result - cond).abs().max() < (1e-12 if part == "low" else 0.3)
        kept = guide("frequency", [(cond, cond - change)], 5.0, **{part: 1.0, other: 0.0})[0]
        assert_close(kept - cond + result - cond, 4 * change, 1e-12)


def test_each_octave_keeps_less_and_a_single_value_is_all_low():
    noise = predictions((1, 1, 64))[0]
    sizes = [low_pass(noise, octaves).square().sum() for octaves in (0, 1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True) and sizes[3] > 0
    cond, uncond = predictions((2, 4, 1, 1))
    assert_close(guide("frequency", [(cond, uncond)], 5.0, low=0.5, high=3.0)[0], plain(cond, uncond, 3.0), 1e-12)
