"""Gaussian teleport and Time-Shift against closed forms."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from comfyui_distillery.samplers.core import to_d
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.gaussian_teleport import Gaussian, fit, isotropic
from comfyui_distillery.samplers.solvers.time_shift import matching_level, ranges, sigma_at

from .problems import EPS, FLOW, PATHS, SIGMAS, assert_close, gaussian, mixture, number, randn
from .test_solvers import euler

every_path = pytest.mark.parametrize("name", PATHS)
teleport, time_shift = SOLVERS["gaussian_teleport"], SOLVERS["time_shift"]

# Gaussian teleport


class Correlated:
    """Data N(mean, covariance) over all elements of an item: its denoiser and exact ODE, by dense linear algebra."""

    def __init__(self, path, shape=(2, 3, 2), rank=None, rest=0.3, seed=0):
        self.path, self.shape = path, shape
        elements = torch.Size(shape).numel()
        factor = randn(elements, rank or elements, seed=seed)
        self.covariance = factor @ factor.T / 4 + rest * torch.eye(elements, dtype=torch.float64)
        self.mean = randn(1, *shape, seed=seed + 1)

    def function(self, of):
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors @ torch.diag(of(values.clamp(min=0))) @ vectors.T

    def apply(self, matrix, gap):
        return (gap.flatten(1) @ matrix).view_as(gap)

    def __call__(self, x, sigma):
        sigma = sigma.flatten()[0]
        alpha = self.path.alpha(sigma)
        return self.mean + self.apply(self.function(lambda v: alpha * v / (alpha**2 * v + sigma**2)), x - alpha * self.mean)

    def exact(self, x, sigma, sigma_next):
        alpha, alpha_next = self.path.alpha(sigma), self.path.alpha(sigma_next)
        moved = self.function(lambda v: ((alpha_next**2 * v + sigma_next**2) / (alpha**2 * v + sigma**2)).sqrt())
        return alpha_next * self.mean + self.apply(moved, x - alpha * self.mean)

    def samples(self, count, seed=5):
        return self.mean + self.apply(self.function(torch.sqrt), randn(count, *self.shape, seed=seed))


@every_path
def test_the_jump_is_the_exact_ode_of_gaussian_data(name):
    """For a low rank above a floor, and from sigma 1 of a flow too, where the VE image is infinite."""
    data = Correlated(PATHS[name], rank=3)
    values, vectors = torch.linalg.eigh(data.covariance)
    known = Gaussian(data.mean, vectors.T[-3:], values[-3:], values[0])
    top, bottom = number(SIGMAS[name][0]), number(SIGMAS[name][3])
    x = randn(4, *data.shape) * top
    assert_close(known.move(PATHS[name], x, top, bottom), data.exact(x, top, bottom), 1e-13)
    assert_close(known.denoised(PATHS[name], x, bottom), data(x, bottom), 1e-13)
    assert_close(known.move(PATHS[name], x, top, number(0.0)), data.exact(x, top, number(0.0)), 1e-12)


def test_a_step_is_what_the_ode_of_the_denoiser_says():
    """d x / d sigma of the jump, by finite difference, against (x - denoised) / sigma."""
    data = isotropic((2, 3), 0.7)
    x = randn(2, 2, 3)
    for path in PATHS.values():
        sigma, step = number(0.8), 1e-6
        slope = (data.move(path, x, sigma, sigma + step) - data.move(path, x, sigma, sigma - step)) / (2 * step)
        assert_close(slope, to_d(x, sigma, data.denoised(path, x, sigma)), 1e-8)


@every_path
def test_skipped_steps_cost_no_call_and_no_error_on_gaussian_data(name):
    """Samples enough to span the data say all there is to know of it: the run then equals one from the exact point."""
    data, sigmas = Correlated(PATHS[name]), number(SIGMAS[name])
    latents, calls, seen = data.samples(4000), [], []
    fitted = fit(latents, 12)
    data.mean, data.covariance = fitted.mean, fitted.basis.T @ torch.diag(fitted.variances) @ fitted.basis
    x = sigmas[0] * randn(3, *data.shape)

    def counted(x, sigma):
        calls.append(float(sigma[0]))
        return data(x, sigma)

    options = {"skip": 0.6, "components": 12, "path": PATHS[name]}
    solver = replace(teleport, sample=with_samples(latents))
    result = solver(counted, x, sigmas, callback=seen.append, **options)
    assert calls == SIGMAS[name][3:5] and teleport.count(5, skip=0.6) == 2
    assert_close(result, euler(data, data.exact(x, sigmas[0], sigmas[3]), sigmas[3:]), 1e-9)
    assert [state["i"] for state in seen] == list(range(5))
    assert_close(seen[1]["x"], data.exact(x, sigmas[0], sigmas[1]), 1e-9)
    assert_close(seen[1]["denoised"], data(seen[1]["x"], sigmas[1]), 1e-9)


def with_samples(latents, **more):
    return partial(teleport.sample, samples=latents, **more)


def test_fit_finds_the_data():
    data = Correlated(EPS, rank=2, rest=0.05)
    fitted = fit(data.samples(20_000), 2)
    values, vectors = torch.linalg.eigh(data.covariance)
    assert_close(fitted.variances, values.flip(0)[:2], 0.05)
    assert fitted.rest == pytest.approx(0.05, rel=0.05)
    assert ((fitted.basis @ vectors[:, -2:]).norm(dim=1) > 0.99).all()
    assert_close(fitted.basis @ fitted.basis.T, torch.eye(2, dtype=torch.float64), 1e-10)
    assert_close(fitted.mean, data.mean, 0.05)


def test_fit_keeps_the_total_variance_however_many_components():
    samples = Correlated(EPS).samples(9)
    total = samples.var(dim=0).sum()
    for components in (0, 1, 4, 8, 100):
        fitted = fit(samples, components)
        assert len(fitted.variances) == min(components, 8) and len(fitted.basis) == len(fitted.variances)
        assert fitted.variances.sum() + fitted.rest * (12 - len(fitted.variances)) == pytest.approx(float(total))
    assert fit(samples[:1].repeat(3, 1, 1, 1), 2).rest == 0


def test_another_solver_takes_over():
    model, sigmas = mixture(FLOW), number(SIGMAS["flow"])
    x = model.start(sigmas[0])
    solver = replace(teleport, sample=with_samples(None, then=SOLVERS["ghvb"]))
    jumped = isotropic(x.shape[1:], 0.8).move(FLOW, x, sigmas[0], sigmas[2])
    assert_close(solver(model, x, sigmas, path=FLOW, skip=0.4, std=0.8), SOLVERS["ghvb"](model, jumped, sigmas[2:]), 1e-13)


@pytest.mark.parametrize(
    "samples, message",
    [(randn(4, 2, 3, 3), r"\(2, 3, 3\) and this run has \(2, 3, 2\)"), (randn(1, 2, 3, 2), "one latent"),
     (randn(2, 2, 3, 2) * float("nan"), "NaN")],
)  # fmt: skip
def test_unusable_samples_are_refused_before_any_call(samples, message):
    x = randn(1, 2, 3, 2)
    with pytest.raises(ValueError, match=message):
        with_samples(samples)(lambda *_: 1 / 0, x, number([1.0, 0.5, 0.0]), path=FLOW, skip=0.5)


# Time-Shift


def wide(path, sigma, std=1.0, items=3, shape=(16, 64, 64)):
    """States of white data with that std: enough elements for a variance to 1 %."""
    data, noise = std * randn(items, *shape, seed=1), randn(items, *shape, seed=2)
    return path.alpha(sigma) * data + sigma * noise


@every_path
def test_an_injected_error_of_variance_moves_the_level_by_the_analytic_amount(name):
    """Noise 20 % too strong beside data of variance v0 looks like the level whose VE sigma is 20 % larger."""
    path, sigma = PATHS[name], number(0.6)
    for v0 in (0.25, 1.0):
        x = wide(path, sigma, std=v0**0.5)
        strong = x + 0.2 * sigma * randn(*x.shape, seed=2)
        found = matching_level(path, strong, sigma, v0)
        expected = path.from_ve(1.2 * sigma / path.alpha(sigma), 1.2 * sigma / path.alpha(sigma))[1]
        assert found.shape == (3,)
        assert_close(found, expected.expand(3), 0.02)


@every_path
def test_a_state_in_its_place_stays_there(name):
    """Its variance differs from the expected one by sampling noise, which is no reason to move."""
    path = PATHS[name]
    for sigma in (0.9, 0.5, 0.3):
        x = wide(path, number(sigma))
        assert torch.equal(matching_level(path, x, number(sigma), 1.0), number(sigma).expand(3))


def test_the_published_criterion_picks_the_last_time_for_unit_variance_and_ours_does_not():
    """Finding 5: against 1 - alpha_bar alone, VP latents of variance 1 always look like pure noise."""
    levels = 0.03 * (14.6 / 0.03) ** torch.linspace(0, 1, 400, dtype=torch.float64)
    noise_share = levels**2 / (1 + levels**2)
    sigma = levels[250]
    x = wide(EPS, sigma)
    published = (EPS.to_vp(x, sigma)[0].var() - noise_share).abs().argmin()
    assert levels[published] > 5 * sigma
    assert torch.equal(matching_level(EPS, x, sigma, 1.0), sigma.expand(3))


@pytest.mark.parametrize("path", [EPS, FLOW, Path("eps", log_sigmas=torch.linspace(-3.5, 2.7, 1000, dtype=torch.float64))])
def test_window_and_cutoff_are_in_training_steps(path):
    sigmas = sigma_at(path, number([0.95, 0.8, 0.6, 0.4, 0.2]))
    assert_close(path.time(sigmas), number([0.95, 0.8, 0.6, 0.4, 0.2]), 1e-9)
    least, most = ranges(path, torch.cat([sigmas, number([0.0])]), window=40.0, cutoff=300.0)
    assert_close(path.time(least), number([0.95, 0.78, 0.58, 0.38, 0.2]), 1e-9)
    assert_close(path.time(most), number([0.95, 0.82, 0.62, 0.42, 0.2]), 1e-9)


@every_path
def test_levels_never_pass_their_neighbours(name):
    sigmas = number(SIGMAS[name])
    least, most = ranges(PATHS[name], sigmas, window=200.0, cutoff=0.0)
    assert (least >= sigmas[1:]).all() and (most[1:] <= sigmas[:-2]).all() and (least <= most).all()


@every_path
def test_the_model_is_called_and_the_step_taken_at_the_level_found(name):
    """Against the same written out for one item."""
    path, sigmas = PATHS[name], number(SIGMAS[name])
    model = gaussian(path, (16, 16, 16))
    x = start = 1.3 * model.start(sigmas[0], batch=1)
    least, most = ranges(path, sigmas, 80.0, 200.0)
    levels = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        level = sigma
        if least[i] < most[i]:
            level = matching_level(path, x, sigma, 1.0)[0].clamp(least[i], most[i])
            x = x * path.alpha(level) / path.alpha(sigma)
        levels.append(float(level))
        x = x + (sigma_next - level) / level * (x - model(x, level))
    seen = []

    def looking(x, sigma):
        seen.append(float(sigma))
        return model(x, sigma)

    assert_close(time_shift(looking, start, sigmas, path=path, window=80.0, cutoff=200.0), x, 1e-10)
    assert seen == pytest.approx(levels) and seen != pytest.approx(SIGMAS[name][:-1])


def test_ve_and_flow_agree():
    """The same states in other coordinates: what is found and where it ends must match."""
    ve_grid = number([8.0, 3.0, 1.2, 0.5, 0.0])
    flow_grid = ve_grid / (1 + ve_grid)
    x = 1.2 * wide(EPS, ve_grid[1])
    in_flow = matching_level(FLOW, x / (1 + ve_grid[1]), flow_grid[1], 1.0)
    assert_close(in_flow / (1 - in_flow), matching_level(EPS, x, ve_grid[1], 1.0), 1e-12)
