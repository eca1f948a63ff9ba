"""DDCM edits: against the published update, closed forms on Gaussian data, and denoisers that agree."""

import pytest
import torch
from comfyui_distillery.samplers.noise import fixed, gaussian
from comfyui_distillery.samplers.turbo import sample_ddcm

from .problems import PATHS, SIGMAS, Gaussian, assert_close, mixture, number, randn

every_path = pytest.mark.parametrize("name", PATHS)


def levels(name, first=0):
    return number(SIGMAS[name])[first:]


def noises_for(x, count):
    return [randn(*x.shape, seed=10 + i) for i in range(count)]


def edited(name, target, source, x0, first=0, **more):
    sigmas = levels(name, first)
    noises = noises_for(x0, len(sigmas) - 1)
    return sample_ddcm(target, source, x0, sigmas, noises[0], fixed(noises[1:]), path=PATHS[name], **more)


def pair(name, spread=1.0):
    """Denoisers of two Gaussians with different means; the first's spread is ``spread`` times the second's."""
    shape = (1, 2, 3, 2)
    std = torch.linspace(0.4, 1.6, 12, dtype=torch.float64).view(shape)
    means = torch.linspace(-1, 1, 12, dtype=torch.float64).view(shape), torch.linspace(2, -1, 12, dtype=torch.float64).view(shape)
    return Gaussian(PATHS[name], means[0], spread * std), Gaussian(PATHS[name], means[1], std)


@every_path
def test_denoisers_that_agree_give_the_picture_itself(name):
    model, x0 = mixture(PATHS[name]), 2 * randn(3, 2, 3, 2)
    assert torch.equal(edited(name, model, model, x0), x0)


@every_path
@pytest.mark.parametrize("first", [0, 2])
def test_on_gaussians_an_edit_moves_the_mean_as_the_closed_form_says_whatever_the_noise(name, first):
    """A level leaves r = alpha^2 s^2 / (alpha^2 s^2 + sigma^2) of the way to the other mean still to go; none at sigma 1 of a flow."""
    target, source = pair(name)
    x0 = source.mean + source.std * randn(3, 2, 3, 2)
    left = torch.ones_like(source.std)
    for sigma in levels(name, first)[:-1]:
        signal = PATHS[name].alpha(sigma) ** 2 * source.std**2
        left = left * signal / (signal + sigma**2)
    assert_close(edited(name, target, source, x0, first), x0 + (1 - left) * (target.mean - source.mean), 1e-13)
    if first == 0:
        assert_close(edited(name, target, source, x0), x0 + target.mean - source.mean, 1e-3 if name == "eps" else 1e-13)


@every_path
@pytest.mark.parametrize("model", ["gaussian", "mixture"])
def test_it_is_the_published_update(name, model):
    """In predicted noise, as the paper has it: the picture is taken from x with eps_target - eps_source + eps_consistent."""
    target, source = pair(name, spread=0.5) if model == "gaussian" else (mixture(PATHS[name]), pair(name)[1])
    x0, sigmas = source.mean + randn(3, 2, 3, 2), levels(name, 1)
    noises = noises_for(x0, len(sigmas) - 1)
    expected = x0
    for sigma, noise in zip(sigmas, noises):
        alpha, at = PATHS[name].alpha(sigma), sigma.expand(len(x0))
        x, x_source = alpha * expected + sigma * noise, alpha * x0 + sigma * noise
        eps, eps_source = ((z - alpha * model(z, at)) / sigma for z, model in ((x, target), (x_source, source)))
        consistent = (x_source - alpha * x0) / sigma
        expected = (x - sigma * (eps - eps_source + consistent)) / alpha
    assert_close(edited(name, target, source, x0, 1), expected, 1e-12)


@every_path
def test_a_picture_is_edited_alone_as_in_a_batch(name):
    target, source = pair(name, spread=0.5)
    x0 = randn(3, 2, 3, 2)
    first = randn(3, 2, 3, 2, seed=4)

    def run(items):
        seeds = [5 + item for item in items]
        return sample_ddcm(target, source, x0[items], levels(name), first[items], gaussian(x0[items], seeds), path=PATHS[name])

    assert_close(run([0, 1, 2])[1:2], run([1]), 1e-14)


def test_the_callback_sees_each_edit_and_nothing_is_changed_in_place():
    target, source = pair("flow")
    x0, states = randn(3, 2, 3, 2), []
    before = x0.clone()
    last = edited("flow", target, source, x0, callback=states.append)
    assert torch.equal(x0, before) and [state["i"] for state in states] == [0, 1, 2, 3, 4]
    assert torch.equal(states[-1]["denoised"], last)
    assert torch.equal(torch.stack([state["sigma"] for state in states]), levels("flow")[:-1].to(x0))


@pytest.mark.parametrize("sigmas", [[0.5], [0.2, 0.5, 0.0], [1.0, float("nan"), 0.0]])
def test_sigmas_that_do_not_fall_are_refused(sigmas):
    target, source = pair("flow")
    x0 = randn(3, 2, 3, 2)
    with pytest.raises(ValueError, match="sigmas"):
        sample_ddcm(target, source, x0, torch.tensor(sigmas), x0, None, path=PATHS["flow"])
