"""Discriminator guidance: the exact logit makes of a wrong model the right one, and a fitted one helps."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from comfyui_distillery.samplers.core import append_dims
from comfyui_distillery.samplers.guidance import discriminator as dg
from comfyui_distillery.samplers.guidance.discriminator import CHANCE, Discriminator, correction, fit
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers.edm_heun import sample_edm_heun

from .problems import PATHS, Gaussian, assert_close, gaussian, graded, randn

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
LEVELS = {"eps": torch.logspace(-1.5, 1.2, 64), "flow": torch.linspace(0.02, 0.98, 64)}


def sampled(model, x, sigmas, path):
    return sample_edm_heun(model, x, sigmas, disable=True, path=path, s_churn=0.0)


def log_density(data, x, sigma):
    _, mean, std = data._marginal(x, sigma)
    return (-0.5 * ((x - mean) / std) ** 2 - std.log()).flatten(1).sum(1)


def pair(path, shape=(2, 3, 2)):
    """(real, generated): what the data are and what the model takes them for, in mean and in std."""
    real = gaussian(path, shape)
    return real, Gaussian(path, real.mean.flip(1) + 0.3, 0.5 + 0.7 * real.std)


def exact_logit(real, generated):
    return lambda x, sigma: log_density(real, x, sigma) - log_density(generated, x, sigma)


@every_path
@pytest.mark.parametrize("shape", [(2, 3, 2), (4, 6), (2, 3, 2, 2)], ids=str)
def test_the_exact_logit_makes_the_true_denoiser(path, shape):
    real, generated = pair(path, shape)
    x, sigma = 2 * randn(4, *shape), torch.tensor([0.97, 0.6, 0.2, 0.01], dtype=torch.float64)
    sigma = sigma if path.is_flow else 10 * sigma
    corrected = generated(x, sigma) + correction(exact_logit(real, generated), x, sigma, path)
    assert_close(corrected, real(x, sigma), 1e-12)


def test_at_sigma_1_of_a_flow_it_is_the_limit():
    real, generated = pair(PATHS["flow"])
    x, sigma = randn(3, 2, 3, 2), torch.ones(3, dtype=torch.float64)
    corrected = generated(x, sigma) + correction(exact_logit(real, generated), x, sigma, PATHS["flow"])
    assert_close(corrected, real(x, sigma), 1e-3)


@every_path
def test_sampling_with_the_exact_logit_gives_the_moments_of_the_data(path):
    """The ODE of a Gaussian is linear: it takes any two points, and so the moments, where the data's own would."""
    real, generated = pair(path)

    def model(x, sigma):
        return generated(x, sigma) + correction(exact_logit(real, generated), x, sigma, path)

    top, bottom = (0.99, 0.001) if path.is_flow else (14.0, 0.001)
    sigmas = graded(400, top, bottom, power=1)
    start, (first, last) = real.start(sigmas[0]), (sigmas[0], sigmas[-1])
    assert_close(sampled(model, start, sigmas, path), real.exact(start, first, last), 2e-4)
    wrong = sampled(generated, start, sigmas, path)
    assert (wrong - real.exact(start, first, last)).abs().max() > 0.5


@every_path
def test_weight_scales_and_0_is_none(path):
    real, generated = pair(path)
    x, sigma = randn(3, 2, 3, 2), torch.full((3,), 0.4, dtype=torch.float64)
    by = partial(correction, exact_logit(real, generated), x, sigma, path)
    weights = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    assert not by(weight=0.0).any()
    assert_close(by(weight=weights), append_dims(weights, x) * by(), 1e-13)


@every_path
def test_boost_is_for_items_that_look_generated(path):
    real, generated = pair(path)
    sigma = torch.full((6,), 0.3, dtype=torch.float64)
    x = torch.cat([real.start(sigma[0]), generated.start(sigma[0])])
    looks_real = exact_logit(real, generated)(x, sigma) >= 0
    assert 0 < looks_real.sum() < 6
    by = partial(correction, exact_logit(real, generated), x, sigma, path)
    assert_close(by(boost=2.0), append_dims(torch.where(looks_real, 1.0, 2.0).double(), x) * by(), 1e-13)


@every_path
def test_in_inference_mode_and_half_precision_it_is_the_same(path):
    torch.manual_seed(0)
    discriminator = opinionated(Discriminator(4, path))
    x, sigma = randn(2, 4, 8, 8).float(), torch.tensor([0.7, 0.3])
    expected = correction(discriminator, x, sigma, path)
    with torch.inference_mode():
        inside = correction(discriminator, x.clone(), sigma.clone(), path)
        before = x.clone()
        half = correction(discriminator, x.half(), sigma, path)
        assert torch.equal(x, before) and not (inside + 1).requires_grad
    assert torch.equal(inside, expected) and expected.abs().max() > 0
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


# The network


def opinionated(discriminator, seed=0):
    """With random weights also where a new one has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in discriminator.parameters():
        if not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return discriminator


@every_path
@pytest.mark.parametrize("channels", [4, 16, 128])
def test_it_is_small_and_a_new_one_corrects_nothing(path, channels):
    new = Discriminator(channels, path)
    assert 100_000 < sum(parameter.numel() for parameter in new.parameters()) < 350_000
    assert not correction(new, torch.randn(2, channels, 8, 8), torch.tensor([0.5, 1.0]), path).any()


@every_path
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 4, 5, 7), (3, 4, 1, 1), (3, 4, 20), (3, 4, 3, 8, 8)], ids=str)
def test_items_stay_apart_in_any_shape(path, shape):
    network, x, sigma = opinionated(Discriminator(4, path)), randn(*shape).float(), torch.tensor([1.0, 0.5, 0.01])
    together = correction(network, x, sigma, path)
    assert together.shape == x.shape and together.isfinite().all() and together.flatten(1).any(1).all()
    for i in range(3):
        assert_close(correction(network, x[i : i + 1], sigma[i : i + 1], path), together[i : i + 1], 1e-5)


@every_path
def test_a_video_has_the_mean_logit_of_its_frames(path):
    network, x, sigma = opinionated(Discriminator(4, path)), randn(2, 4, 3, 8, 8).float(), torch.tensor([0.7, 0.2])
    frames = torch.stack([network(x[:, :, i], sigma) for i in range(3)])
    assert frames.std() > 1e-3
    assert_close(network(x, sigma), frames.mean(0), 1e-5)


def test_at_pure_noise_it_cannot_tell():
    network = opinionated(Discriminator(4, PATHS["eps"]))
    x = randn(2, 4, 8, 8).float()
    clean, noisy = (network(x * (1 + s), torch.full((2,), s)).abs().max() for s in (0.1, 1e4))
    assert noisy < 1e-3 * clean


# Fitting


@pytest.fixture(scope="module", params=PATHS)
def fitted(request):
    """Real and generated latents that differ in the mean of each channel, and what tells them apart."""
    path = PATHS[request.param]
    mean = torch.tensor([0.3, -0.2, 0.1, 0.0]).view(1, 4, 1, 1)
    std = torch.full_like(mean, 0.5)
    real, generated = Gaussian(path, mean, std), Gaussian(path, -mean, std)
    latents = [each.mean + 0.5 * randn(256, 4, 4, 4, seed=seed).float() for seed, each in enumerate((real, generated))]
    result = fit(*latents, path, LEVELS[request.param], steps=200, batch=32, seed=0)
    return SimpleNamespace(path=path, real=real, generated=generated, latents=latents, result=result, name=request.param)


def test_a_fitted_one_tells_apart_what_it_was_not_fitted_on(fitted):
    """Nearly as well as the exact logit does on the same latents and levels."""
    result, generator = fitted.result, torch.Generator().manual_seed(1)
    assert result.steps == 200 and result.held_out == 51

    def best(x, sigma):
        return exact_logit(fitted.real, fitted.generated)(x, sigma)

    best.path = fitted.path
    fresh = [
        each.mean + 0.5 * randn(1000, 4, 4, 4, seed=seed).float() for seed, each in ((7, fitted.real), (8, fitted.generated))
    ]
    levels = dg.draw(LEVELS[fitted.name], 1000, generator)
    ideal, ours = (
        dg.tell(each, fresh, levels, torch.Generator().manual_seed(2), "cpu")[0] for each in (best, result.discriminator)
    )
    assert ideal < ours < ideal + 0.1 < CHANCE - 0.1
    assert result.loss == pytest.approx(float(ours), abs=0.1) and result.accuracy > 0.75


def test_a_fitted_one_moves_sampling_towards_the_data(fitted):
    path, network = fitted.path, fitted.result.discriminator

    def model(x, sigma):
        return fitted.generated(x, sigma) + correction(network, x, sigma, path)

    top = 0.98 if path.is_flow else 14.0
    sigmas = torch.cat([graded(20, top, top / 200, power=1).float(), torch.zeros(1)])
    start = append_dims(sigmas[0], torch.zeros(1)) * randn(64, 4, 4, 4, seed=3).float()
    target = fitted.real.mean.flatten()
    off = {}
    for name, denoiser in (("plain", fitted.generated), ("guided", model)):
        off[name] = (sampled(denoiser, start, sigmas, path).mean((0, 2, 3)) - target).norm()
    assert off["plain"] > 0.7  # twice the distance of the data's mean from 0
    assert off["guided"] < 0.4 * off["plain"]


def test_fitting_repeats_itself_and_leaves_the_global_generator_alone(fitted):
    state = torch.random.get_rng_state()
    with torch.inference_mode():  # as in a node
        latents = [each.clone() for each in fitted.latents]
        runs = [fit(*latents, fitted.path, LEVELS[fitted.name], steps=3, batch=4, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    one, two, other = ([*run.discriminator.state_dict().values()] for run in runs)
    assert all(map(torch.equal, one, two)) and not all(map(torch.equal, one, other))
    assert runs[0].loss == runs[1].loss


def test_fitting_tells_each_step_and_stops_when_asked(fitted):
    seen = []

    def progress(step, loss):
        seen.append(step)
        assert loss.isfinite() and not loss.requires_grad
        return step < 2

    assert fit(*fitted.latents, fitted.path, LEVELS[fitted.name], steps=9, batch=4, seed=0, progress=progress).steps == 2
    assert seen == [1, 2]


def test_twins_cannot_be_told_apart():
    """Real and generated of one distribution: on what it was not fitted on, chance."""
    latents = [randn(400, 4, 4, 4, seed=seed).float() for seed in (0, 1)]
    result = fit(*latents, PATHS["flow"], LEVELS["flow"], steps=60, batch=16, seed=0)
    assert abs(result.accuracy - 0.5) < 0.1 and result.loss > CHANCE - 0.03


@pytest.mark.parametrize(
    "real, generated, message",
    [
        (
            torch.zeros(8, 4, 8, 8),
            torch.zeros(8, 4, 8, 4),
            r"real holds latents of shape \(4, 8, 8\) and generated of \(4, 8, 4\)",
        ),
        (torch.zeros(8, 4, 8, 8), torch.zeros(8, 16, 8, 8), r"generated of \(16, 8, 8\): make both with the same model"),
        (torch.zeros(3, 4, 8, 8), torch.zeros(8, 4, 8, 8), "real holds 3 latents: give at least 4"),
        (torch.zeros(8, 4, 8, 8), torch.zeros(1, 4, 8, 8), "generated holds 1 latents"),
        (torch.zeros(8, 4, 8, 8), torch.full((8, 4, 8, 8), torch.nan), "generated holds values that are not finite"),
    ],
)
def test_bad_latents(real, generated, message):
    with pytest.raises(ValueError, match=message):
        fit(real, generated, Path("eps"), LEVELS["eps"], steps=1, batch=1, seed=0)
