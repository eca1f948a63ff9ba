"""Paths: exact both ways, and equal to what the words eps, v, EDM and flow mean."""

import math

import pytest
import torch
from comfyui_distillery.samplers.path import BETA_MAX, BETA_MIN, PREDICTIONS, Path

from .problems import EPS, FLOW, assert_close, number, randn

LEVELS = {"eps": [1e-3, 0.3, 14.6, 700.0], "flow": [1e-4, 0.3, 0.5, 0.9999]}
SHAPES = [(4, 2, 3, 2), (4, 2, 3, 4, 2), (4, 1, 24)]  # image, video, packed

every_path = pytest.mark.parametrize("path", [EPS, FLOW], ids=["eps", "flow"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def levels(path):
    return number(LEVELS["flow" if path.is_flow else "eps"])


@every_path
def test_lam_is_log_signal_to_noise_and_inverts(path):
    sigma = levels(path)
    assert_close(path.lam(sigma), (path.alpha(sigma) / sigma).log(), 1e-12)
    assert_close(path.sigma(path.lam(sigma)), sigma, 1e-12)


@every_path
@every_shape
@pytest.mark.parametrize("image", ["ve", "vp"])
def test_images_hold_the_same_noise_and_come_back(image, shape, path):
    data, eps, sigma = randn(*shape), randn(*shape, seed=1), levels(path)
    wide = sigma.view(-1, *[1] * (len(shape) - 1))
    x = path.alpha(wide) * data + wide * eps
    if image == "ve":
        x_image, sigma_image = parts = path.to_ve(x, sigma)
        alpha_image = torch.ones_like(sigma)
    else:
        x_image, alpha_image, sigma_image = parts = path.to_vp(x, sigma)
        assert_close(alpha_image**2 + sigma_image**2, torch.ones_like(sigma), 1e-14)
    assert_close((alpha_image / sigma_image).log(), path.lam(sigma), 1e-11)
    alpha_image, sigma_image = alpha_image.view_as(wide), sigma_image.view_as(wide)
    assert_close(x_image, alpha_image * data + sigma_image * eps, 1e-11)
    back, sigma_back = (path.from_ve if image == "ve" else path.from_vp)(*parts)
    assert_close(back, x, 1e-12)
    assert ((sigma_back - sigma).abs() <= 1e-12 * sigma).all()
    for i in range(len(x)):  # sigma (B,) is sigma () for each item
        assert_close((path.to_ve if image == "ve" else path.to_vp)(x[i], sigma[i])[0], x_image[i], 1e-14)


TARGETS = {  # what each network is trained to output, on data scaled by sigma_data
    "eps": lambda data, eps, sigma, sd: eps,
    "v": lambda data, eps, sigma, sd: (sd**2 * eps - sigma * data) / (sd * (sigma**2 + sd**2).sqrt()),
    "edm": lambda data, eps, sigma, sd: (sigma * data - sd**2 * eps) / (sd * (sigma**2 + sd**2).sqrt()),
    "cosmos": lambda data, eps, sigma, sd: eps - data,
    "flow": lambda data, eps, sigma, sd: eps - data,
}


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@every_shape
def test_predictions(shape, prediction, sigma_data):
    path = Path(prediction, sigma_data=sigma_data)
    data, eps, sigma = randn(*shape), randn(*shape, seed=1), levels(path)[1:3].repeat(2)
    wide = sigma.view(-1, *[1] * (len(shape) - 1))
    x = path.alpha(wide) * data + wide * eps
    output = TARGETS[prediction](data, eps, wide, sigma_data)
    assert_close(path.denoised(output, x, sigma), data, 1e-13)
    assert_close(path.output(data, x, sigma), output, 1e-12)
    assert_close(path.denoised(path.output(eps, x, sigma), x, sigma), eps, 1e-12)
    assert_close(path.denoised(output[:1], x[:1], sigma[0]), data[:1], 1e-13)


def test_offset_first():
    assert EPS.offset_first(number([80.0, 1.0, 0.0])).tolist() == [80, 1, 0]
    assert FLOW.offset_first(number([1.0, 0.9, 0.0])).tolist() == [0.9999, 0.9, 0]
    assert FLOW.offset_first(number([0.98, 0.9, 0.0])).tolist() == [0.98, 0.9, 0]
    assert FLOW.offset_first(number([1.0, 0.99995, 0.0])).tolist() == pytest.approx([0.999975, 0.99995, 0])
    assert Path("flow", sigma_first=0.999).offset_first(number([1.0, 0.0])).tolist() == [0.999, 0]
    assert FLOW.lam(FLOW.offset_first(number([1.0, 0.5]))).isfinite().all()


def test_time_of_flow_is_sigma():
    assert FLOW.time(levels(FLOW)).tolist() == LEVELS["flow"]
    cosmos = Path("cosmos", log_sigmas=torch.linspace(-3, 3, 9))
    assert_close(cosmos.time(EPS.sigma(FLOW.lam(levels(FLOW)))), levels(FLOW), 1e-12)


def test_time_without_a_table_solves_the_vp_sde():
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    noise = (t * BETA_MIN + t**2 * (BETA_MAX - BETA_MIN) / 2).expm1().sqrt()  # sigma^2 = exp(integral of beta) - 1
    assert_close(EPS.time(noise), t, 1e-13)


def test_time_with_a_table():
    table = number([0.03, 0.1, 1.0, 14.0]).log()
    path = Path("v", log_sigmas=table)
    assert_close(path.time(table.exp()), number([0.25, 0.5, 0.75, 1.0]), 1e-14)
    assert float(path.time(number(math.sqrt(0.03 * 0.1)))) == pytest.approx(0.375, abs=1e-12)
    assert path.time(number([0.0, 0.015, 0.03])).tolist() == pytest.approx([0, 0.125, 0.25], abs=1e-14)
    assert (path.time(torch.linspace(0, 20, 500)).diff() > 0).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dtype_stays(prediction):
    path, x, sigma = Path(prediction, log_sigmas=torch.linspace(-3, 3, 9)), torch.randn(2, 3, 4), torch.tensor([0.5, 0.9])
    results = [*path.to_ve(x, sigma), *path.from_ve(x, sigma), *path.to_vp(x, sigma), *path.from_vp(x, sigma, sigma)]
    results += [path.denoised(x, x, sigma), path.output(x, x, sigma), path.time(sigma), path.offset_first(sigma.flip(0))]
    assert {result.dtype for result in results} == {torch.float32}


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("prediction is 'x0'", {"prediction": "x0"}),
        ("sigma_data is 0", {"prediction": "edm", "sigma_data": 0.0}),
        ("sigma_first is 1", {"prediction": "flow", "sigma_first": 1.0}),
    ],
)
def test_bad_paths(message, arguments):
    with pytest.raises(ValueError, match=message):
        Path(**arguments)
