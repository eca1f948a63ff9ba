"""Levels, weights, distances, laws, noise, averages and rates of training, against closed forms."""

import math

import pytest
import torch
from comfyui_distillery.distill import draws, ema, geometry
from comfyui_distillery.distill.draws import Draws
from comfyui_distillery.distill.huber import pseudo_huber, pseudo_huber_each, squared
from comfyui_distillery.distill.immiscible import nearest
from comfyui_distillery.distill.laws import LAWS
from comfyui_distillery.distill.levels import Levels
from comfyui_distillery.distill.lion import Lion
from comfyui_distillery.distill.ode import solve
from comfyui_distillery.distill.optimisers import OPTIMISERS
from comfyui_distillery.distill.rates import rate
from comfyui_distillery.distill.weights import WEIGHTS, weight
from comfyui_distillery.samplers.core import append_dims
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.schedules.timesteps import trailing
from scipy import stats

from .distilling import LEVELS
from .problems import EPS, FLOW, PATHS, assert_close, convergence, gaussian, number, randn

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
every_levels = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
SIGMA = torch.tensor([0.1, 0.3, 0.6, 0.95], dtype=torch.float64)


@every_path
def test_a_jump_lands_where_its_target_says(path):
    x, y, sigma = randn(4, 2, 3, 3), randn(4, 2, 3, 3, seed=1), SIGMA
    for share in (0.0, 0.4, 0.9):
        denoised = geometry.target(y, x, sigma, share * sigma)
        assert_close(geometry.jump(x, sigma, share * sigma, denoised), y, 1e-13)
        assert_close(x + append_dims((share - 1) * sigma, x) * (x - denoised) / append_dims(sigma, x), y, 1e-13)


def test_the_start_has_the_standard_deviation_of_noised_unit_data():
    noise, sigma = torch.ones(1, 1, dtype=torch.float64), number([14.6])
    assert_close(geometry.start(EPS, noise, sigma), torch.full_like(noise, math.hypot(14.6, 1)), 1e-14)
    assert_close(geometry.start(Path("cosmos"), noise, sigma), 14.6 * noise, 1e-14)
    assert_close(geometry.start(FLOW, noise, number([1.0])), noise, 1e-14)


@every_path
@pytest.mark.parametrize("solver, order", [("ddim", 1), ("heun", 2)])
def test_order_of_the_teachers_path(solver, order, path):
    problem, (top, end) = gaussian(path), number([[0.9, 0.8, 0.7], [0.2, 0.1, 0.3]])  # items between levels of their own
    x = randn(3, 2, 3, 2)
    exact = torch.cat([problem.exact(x[i : i + 1], top[i], end[i]) for i in range(3)])
    counts = [20, 40, 80]
    errors = [
        float((solve(problem, x, torch.stack([torch.lerp(top, end, i / n) for i in range(n + 1)]), solver) - exact).abs().max())
        for n in counts
    ]
    assert order - 0.2 < convergence(errors, counts) < order + 0.3


def test_a_step_to_nothing_ends_on_denoised_in_those_items_alone():
    x, sigmas = randn(2, 2, 3, 2), number([[0.5, 0.5], [0.0, 0.3]])
    got, problem = solve(gaussian(FLOW), x, sigmas, "heun"), gaussian(FLOW)
    assert_close(got[:1], problem(x[:1], sigmas[0, :1]), 1e-14)
    assert_close(got[1:], solve(problem, x[1:], sigmas[:, 1:], "heun"), 1e-14)


# Levels


@every_levels
def test_time_and_sigma_are_inverse(levels):
    time = torch.linspace(0, 1, 3001, dtype=torch.float64)
    assert_close(levels.time(levels.sigma(time)), time, 1e-12)
    assert levels.sigma(number(0.0)) == 0 and levels.sigma(number(1.0)) == levels.sigma_max
    assert (levels.sigma(time).diff() > 0).all()


def test_times_are_those_of_the_path():
    table = torch.linspace(math.log(0.03), math.log(14.6), 1000, dtype=torch.float64)
    path, time = Path("eps", log_sigmas=table), torch.linspace(0.0001, 1, 700, dtype=torch.float64)
    assert_close(path.time(Levels(path, table.exp()).sigma(time)), time, 1e-12)


@every_levels
@pytest.mark.parametrize("n", [1, 4, 8, 25])
def test_the_grid_is_that_of_trailing_timesteps(n, levels):
    expected = trailing(n, None, None, path=levels.path, table=levels.table)
    assert_close(levels.grid(n), expected, 1e-12)


# Weights


@every_path
def test_weights_turn_an_error_of_denoised_into_that_of_each_prediction(path):
    """The paper's loss, computed from the prediction itself, is the weight times the error of x0."""
    x, other, sigma = randn(4, 2, 3, 3), randn(4, 2, 3, 3, seed=1), append_dims(SIGMA, randn(4, 2, 3, 3))
    truth = randn(4, 2, 3, 3, seed=2)
    alpha, edm = path.alpha(sigma), Path("edm", sigma_data=0.7)
    norm = torch.hypot(alpha, sigma)

    def eps(denoised):
        return (x - alpha * denoised) / sigma

    def v(denoised):  # alpha eps - sigma x0 on the unit-variance path
        return alpha / norm * eps(denoised) - sigma / norm * denoised

    predictions = {"x0": lambda d: d, "eps": eps, "v": v, "flow": lambda d: (x - d) / sigma}
    for name, prediction in predictions.items():
        loss = squared(prediction(other) - prediction(truth))
        assert_close(weight(name, path, SIGMA) * squared(other - truth), loss, 1e-12)
    if not path.is_flow:
        loss = squared(edm.output(other, x, SIGMA) - edm.output(truth, x, SIGMA))
        assert_close(weight("edm", edm, SIGMA) * squared(other - truth), loss, 1e-12)
    snr = (path.alpha(SIGMA) / SIGMA) ** 2
    assert_close(weight("min_snr", path, SIGMA), torch.minimum(snr, number(5.0)), 1e-14)
    assert_close(weight("truncated", path, SIGMA), torch.maximum(snr, number(1.0)), 1e-14)


@every_path
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_stay_finite_and_nowhere_negative(name, path):
    values = weight(name, path, torch.linspace(0, 1, 101, dtype=torch.float64))
    assert values.isfinite().all() and (values >= 0).all() and values.max() <= 450


def test_the_limits_of_pseudo_huber():
    difference = randn(3, 2, 4, 4)
    assert_close(pseudo_huber(difference, 1e5) * 2e5, squared(difference), 1e-4)
    assert_close(pseudo_huber_each(difference, 1e5) * 2e5, squared(difference), 1e-4)
    assert_close(pseudo_huber(difference, 1e-9), squared(difference).sqrt(), 1e-8)
    assert_close(pseudo_huber_each(difference, 1e-9), difference.abs().mean((1, 2, 3)), 1e-8)
    over_all = (difference.flatten(1).norm(dim=1) ** 2 + (0.1 * 32**0.5) ** 2).sqrt() - 0.1 * 32**0.5
    assert_close(pseudo_huber(difference, 0.1), over_all / 32**0.5, 1e-13)


# Laws

U = Draws(3, 0, tuple(range(4000))).uniform("test")
WIDE = {"eps": Levels.between(EPS, 1e-7, 1e7, 4000), "flow": Levels(FLOW, torch.linspace(1e-6, 1, 100000, dtype=torch.float64))}


def test_logit_normal_and_uniform_are_what_they_say():
    logit = LAWS["logit_normal"](U, None, mean=-0.5, std=1.5).logit()
    assert stats.kstest(logit.numpy(), stats.norm(-0.5, 1.5).cdf).pvalue > 0.01
    assert stats.kstest(LAWS["uniform"](U, None).numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("levels", WIDE.values(), ids=WIDE)
def test_lognormal_levels_are_lognormal_on_the_ve_scale(levels):
    sigma = levels.sigma(LAWS["lognormal"](U, levels, mean=-1.1, std=2.0))
    log_ve = (sigma / levels.path.alpha(sigma)).log()
    assert stats.kstest(log_ve.numpy(), stats.norm(-1.1, 2.0).cdf).pvalue > 0.01


def test_mode_has_the_density_of_its_inverse_and_mean_one_half():
    u = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    assert_close(LAWS["mode"](u, None, spread=0.0), 1 - u, 1e-12)
    for spread in (-0.9, 0.4, 0.8):
        time = LAWS["mode"](u, None, spread=spread)
        assert (time.diff() <= 0).all() and time.unique().numel() > 99000 and abs(time.mean() - 0.5) < 1e-6
        middle = ((time > 0.45) & (time < 0.55)).double().mean() / 0.1  # the density at 1/2 is 1 / |f'(1/2)|, u = 1/2 there
        assert middle == pytest.approx(1 / (1 + spread * (1 - math.pi / 2)), rel=0.05)


def test_edges_are_where_a_sampler_evaluates_equally_often():
    values, counts = LAWS["edges"](U, None, steps=4).unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


@every_levels
@pytest.mark.parametrize("law", LAWS)
def test_no_law_leaves_the_models_levels(law, levels):
    ends = torch.tensor([0.0, 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    sigma = levels.sigma(LAWS[law](torch.cat([U, ends]), levels))
    assert (sigma > 0).all() and (sigma <= levels.sigma_max).all()


# Draws


def test_a_draw_depends_on_its_seed_purpose_step_and_item_alone():
    like = torch.zeros(6, 2, 3)
    whole, part = Draws(1, 5, tuple(range(6))), Draws(1, 5, (4, 2))
    for drawn, some in ((whole.normal("a", like), part.normal("a", like[:2])), (whole.uniform("a"), part.uniform("a"))):
        assert torch.equal(drawn[[4, 2]], some)
    assert whole.shared("a") == part.shared("a")
    places = [(1, 5, (0,)), (2, 5, (0,)), (1, 6, (0,)), (1, 5, (1,))]
    seen = {Draws(*place).uniform(purpose).item() for place in places for purpose in "ab"}
    assert len(seen) == 8


def test_draws_are_normal_and_independent():
    values = Draws(0, 0, tuple(range(2000))).normal("a", torch.zeros(2000, 4))
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 0.01
    assert (torch.corrcoef(values.T) - torch.eye(4)).abs().max() < 0.1
    assert abs(torch.corrcoef(torch.stack([values[1:, 0], values[:-1, 0]]))[0, 1]) < 0.1  # of neighbouring items


def test_it_is_torchs_own_generator():
    assert torch.equal(torch.rand(3, generator=draws.generator(0, "a")), torch.rand(3, generator=draws.generator(0, "a", 0, 0)))


def test_immiscible_noise_is_the_nearest_and_stays_about_normal():
    clean, candidates = randn(2, 3, 3), randn(16, 2, 3, 3, seed=1)
    distances = [float(((noise - clean) ** 2).sum()) for noise in candidates]
    assert torch.equal(nearest(clean, candidates), candidates[distances.index(min(distances))])
    chosen = torch.stack([nearest(randn(4, 8, 8, seed=2 * i), randn(4, 4, 8, 8, seed=2 * i + 1)) for i in range(200)])
    assert abs(chosen.var() - 1) < 0.05


# Averages, rates, steps


def test_the_average_is_geometric_once_it_is_full_and_plain_until_then():
    kept, now = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
    values = randn(60)
    for k, value in enumerate(values):
        torch.nn.init.constant_(now.weight, value)
        ema.update(kept, now, 0.9, k)
        if k < 9:
            assert_close(kept.weight.detach().view(()), values[: k + 1].mean(), 1e-13)
    weights = torch.tensor([0.9 ** (59 - max(k, 9)) * 0.1 for k in range(60)], dtype=torch.float64)
    weights[:10] = 0.9**50 / 10
    assert_close(kept.weight.detach().view(()), (weights * values).sum(), 1e-13)


@pytest.mark.parametrize("schedule, end", [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)])
def test_rates_rise_over_the_warmup_and_fall_to_the_floor(schedule, end):
    values = [rate(step, 200, schedule=schedule, warmup=20, floor=0.1) for step in range(201)]
    assert values[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert values[20] == 1 and values[200] == pytest.approx(end) and values[20:] == sorted(values[20:], reverse=True)
    middle = {"constant": 1.0, "linear": 0.55, "cosine": 0.55}[schedule]
    assert values[110] == pytest.approx(middle)
    assert rate(0, 1, schedule=schedule) == 1 and rate(3, 4, warmup=1000) > 0


def test_lion_is_its_published_five_lines():
    p, q = torch.nn.Parameter(randn(5, 3)), randn(5, 3)
    optimiser, momentum = Lion([p], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1), torch.zeros(5, 3, dtype=torch.float64)
    for step in range(20):
        p.grad = gradient = randn(5, 3, seed=step + 1)
        optimiser.step()
        c = 0.9 * momentum + (1 - 0.9) * gradient
        q = q - 0.01 * (torch.sign(c) + 0.1 * q)
        momentum = 0.99 * momentum + (1 - 0.99) * gradient
    assert_close(p.detach(), q, 1e-13)


@pytest.mark.parametrize("name", [name for name, optimiser in OPTIMISERS.items() if optimiser.package])
def test_a_missing_library_is_named(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, OPTIMISERS[name].package, None)  # as Python marks what cannot be imported
    with pytest.raises(ValueError, match=f"pip install {OPTIMISERS[name].package}"):
        OPTIMISERS[name].make([torch.nn.Parameter(torch.zeros(2))], 1e-3, 0.0)
