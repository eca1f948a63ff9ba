"""Solvers of distilled models on data with exact answers, and the methods they become at the ends of their knobs."""

from dataclasses import dataclass, replace

import pytest
import torch
from comfyui_distillery.samplers.noise import fixed
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.solvers.pcm import phase_ends
from comfyui_distillery.samplers.solvers.tcd import levels_below

from .problems import EPS, FLOW, PATHS, SIGMAS, assert_close, gaussian, mixture, number, randn
from .test_solvers import euler
from .test_solvers_stochastic import Consistency, moments, spread
from .test_solvers_stochastic_limits import no_noise

every_path = pytest.mark.parametrize("name", PATHS)

# Where a step goes


def test_phases_share_out_the_steps():
    assert phase_ends(4, 0) == phase_ends(4, 4) == phase_ends(4, 9) == [1, 2, 3, 4]
    assert phase_ends(4, 1) == [4, 4, 4, 4]
    assert phase_ends(8, 4) == [2, 2, 4, 4, 6, 6, 8, 8]
    assert phase_ends(5, 2) == [2, 2, 5, 5, 5]


@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
def test_between_timesteps_and_without_them_tcd_goes_by_model_time(kind):
    path = Path("eps", log_sigmas=torch.linspace(-3.5, 2.7, 1000)) if kind == "eps" else Path(kind)
    levels = number([0.8, 0.4, 0.1]) + 1e-3
    below = levels_below(path, levels, 0.3)
    assert_close(path.time(below), 0.7 * path.time(levels), 1e-9)
    assert_close(levels_below(path, levels, 1e-9), levels, 1e-6)


def test_on_flow_tcd_jumps_to_a_share_of_sigma():
    """As CTM's gamma, whose share is sqrt(1 - gamma^2): on flow time is sigma."""
    model, sigmas = mixture(FLOW), number(SIGMAS["flow"])
    x = model.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(4)]

    def run(key, **knobs):
        return SOLVERS[key](model, x, sigmas, path=FLOW, noise_sampler=fixed(noises), **knobs)

    assert_close(run("tcd", gamma=0.3), run("ctm_gamma", gamma=(1 - 0.7**2) ** 0.5), 1e-12)
    assert torch.equal(run("tcd", end="timestep_0"), run("tcd"))


# Exact moments


@dataclass
class Jumping:
    """A network that takes DDIM from each level exactly to where the ODE leads at a target: a phased, or TCD's, function."""

    teacher: object
    targets: dict  # sigma: target

    def __call__(self, x, sigma):
        target = number(self.targets[round(float(sigma.flatten()[0]), 9)])
        sigma = sigma.flatten()[0]
        share = target / sigma
        return (self.teacher.exact(x, sigma, target) - share * x) / (1 - share)

    def _marginal(self, x, sigma):
        return self.teacher._marginal(x, sigma)

    @property
    def mean(self):
        return self.teacher.mean


def check_exact(name, key, sigmas, targets, draws=True, **knobs):
    teacher = gaussian(PATHS[name], (1, 2, 2))
    model = Jumping(teacher, {round(float(s), 9): float(t) for s, t in zip(sigmas, targets)})
    mean, std, response, drawn = moments(key, name, sigmas, model, **knobs)
    _, true_mean, true_std = teacher._marginal(mean, sigmas[-1])
    assert_close(mean, true_mean, 1e-12)
    assert_close(std, true_std, 1e-12)
    assert drawn and (response.abs() < true_std).all()


@pytest.mark.parametrize("phases", [1, 2, 3])
@every_path
def test_pcm_is_exact_for_a_phased_consistency_function(name, phases):
    """Six steps, mean and std of every element; the covariance is diagonal, as is everything else in it."""
    sigmas = spread(name, 6)
    ends = {1: [6] * 6, 2: [3] * 3 + [6] * 3, 3: [2, 2, 4, 4, 6, 6]}[phases]
    check_exact(name, "pcm", sigmas, sigmas[ends], phases=phases)


@pytest.mark.parametrize("gamma", [0.2, 0.6, 1.0])
@every_path
def test_tcd_is_exact_for_a_function_that_reaches_its_targets(name, gamma):
    sigmas = spread(name, 4)
    targets = levels_below(PATHS[name], sigmas[1:], gamma)
    if name == "flow":
        assert_close(targets, (1 - gamma) * sigmas[1:], 1e-12)
    check_exact(name, "tcd", sigmas, targets, gamma=gamma)


CONSISTENT = [("tcd", {"gamma": 1.0}), ("scm", {}), ("ping_pong", {})]


@pytest.mark.parametrize("key, knobs", CONSISTENT, ids=str)
@every_path
def test_with_all_noise_new_they_are_exact_for_a_consistency_function(name, key, knobs):
    model, sigmas = Consistency(name), spread(name, 3)
    mean, std, _, _ = moments(key, name, sigmas, model, **knobs)
    _, true_mean, true_std = model._marginal(mean, sigmas[-1])
    assert_close(mean, true_mean, 1e-12)
    assert_close(std, true_std, 1e-12)


MIXED = [("tcd", {"gamma": 0.3}), ("pcm", {"phases": 2}), ("scm", {}), ("ping_pong", {"fresh": 0.5}),
         ("ping_pong", {"fresh": 1.0, "fresh_end": 0.2})]  # fmt: skip


@pytest.mark.parametrize("key, knobs", MIXED, ids=str)
@every_path
def test_noise_is_at_its_level_when_the_data_is_one_point(name, key, knobs):
    model = gaussian(PATHS[name], (1, 2, 2))
    model = replace(model, std=torch.zeros_like(model.std))
    sigmas = spread(name, 5)
    mean, std, _, _ = moments(key, name, sigmas, model, **knobs)
    assert_close(mean, model.path.alpha(sigmas[-1]) * model.mean, 1e-12)
    assert_close(std, sigmas[-1].expand_as(std), 1e-12)


# Ends of the knobs


LCM = [("scm", {}), ("ping_pong", {}), ("pcm", {"phases": 1}), ("tcd", {"gamma": 1.0})]


@pytest.mark.parametrize("key, knobs", LCM, ids=str)
@every_path
def test_with_all_noise_new_they_are_lcm(name, key, knobs):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    x = model.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(4)]
    ours = SOLVERS[key](model, x, sigmas, path=PATHS[name], noise_sampler=fixed(noises), **knobs)
    lcm = SOLVERS["ctm_gamma"](model, x, sigmas, path=PATHS[name], noise_sampler=fixed(noises), gamma=1.0)
    assert_close(ours, lcm, 1e-12)


@pytest.mark.parametrize("key, knobs", [("tcd", {"gamma": 0.0}), ("pcm", {}), ("pcm", {"phases": 5}), ("ping_pong", {"fresh": 0.0})])
@every_path
def test_no_noise_is_drawn_where_none_is_asked_for(name, key, knobs):
    """Also at float32 sigmas of a float32 table, where a jump to the same timestep must not round to one below."""
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name])
    result = SOLVERS[key](model, model.start(sigmas[0]), sigmas, path=PATHS[name], noise_sampler=no_noise, **knobs)
    assert_close(result, euler(model, model.start(sigmas[0]), sigmas), 1e-12)
    path = Path("eps", log_sigmas=torch.linspace(-3.5, 2.7, 1000))
    levels = torch.cat([path.log_sigmas[[999, 500, 20, 2]].exp(), torch.zeros(1)])
    SOLVERS[key](mixture(EPS), randn(1, 2, 3, 2).float(), levels, path=path, noise_sampler=no_noise, **knobs)


@every_path
def test_the_share_of_fresh_noise_runs_in_a_straight_line(name):
    path, model, sigmas = PATHS[name], mixture(PATHS[name]), number(SIGMAS[name])
    x, noises = model.start(sigmas[0]), [randn(*model.start(sigmas[0]).shape, seed=i) for i in range(4)]
    knobs = {"fresh": 0.9, "fresh_end": 0.3, "s_noise": 1.2}
    ours = SOLVERS["ping_pong"](model, x, sigmas, path=path, noise_sampler=fixed(noises), **knobs)
    for share, noise, sigma, after in zip((0.9, 0.7, 0.5, 0.3), noises, sigmas, sigmas[1:]):
        denoised = model(x, sigma)
        eps = (x - path.alpha(sigma) * denoised) / sigma
        x = path.alpha(after) * denoised + after * ((1 - share**2) ** 0.5 * eps + 1.2 * share * noise)
    assert_close(ours, model(x, sigmas[-2]), 1e-12)


@every_path
def test_s_noise_scales_what_scm_adds(name):
    model, sigmas = mixture(PATHS[name]), number(SIGMAS[name][:2])
    x, noise = model.start(sigmas[0]), randn(*model.start(sigmas[0]).shape)

    def run(**knobs):
        return SOLVERS["scm"](model, x, sigmas, path=PATHS[name], noise_sampler=fixed([noise]), **knobs)

    assert_close(run(s_noise=1.5) - run(s_noise=0.5), sigmas[1] * noise, 1e-12)


@pytest.mark.parametrize("path", [FLOW, Path("edm", sigma_data=0.5), Path("cosmos"), Path("v")])
def test_unit_noise_is_what_the_network_sees_of_pure_noise(path):
    """Its input has the std of noise: x on flow, x / (1 + sigma) on Cosmos, x / sqrt(sigma^2 + sigma_data^2) elsewhere."""
    seen, noise, sigma = [], randn(2, 2, 3, 2), number(0.7)

    def model(x, sigma):
        scale = {"flow": 1.0, "cosmos": 1.7}.get(path.prediction, (0.49 + path.sigma_data**2) ** 0.5)
        seen.append(x / scale)
        return torch.zeros_like(x)

    SOLVERS["ping_pong"](model, noise * sigma, number([0.7, 0.0]), path=path, start="unit_noise")
    assert_close(seen[0], noise, 1e-12)
