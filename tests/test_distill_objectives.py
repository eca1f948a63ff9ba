"""Every objective on Gaussian data, where its best student is known in closed form."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from comfyui_distillery.distill.geometry import jump, start, target
from comfyui_distillery.distill.objectives import OBJECTIVES
from comfyui_distillery.distill.objectives.consistency import levels_at, noisy_jump
from comfyui_distillery.distill.objectives.progressive import stage_of, stages, steps_of
from comfyui_distillery.distill.ode import solve
from comfyui_distillery.samplers.core import append_dims

from .distilling import LEVELS, Affine, Exact, Moved, Plain, batch_of, fit, two_gaussians
from .problems import assert_close, convergence, number, randn

SHAPE = (2, 3, 2)
PLAIN = {"weight": "x0", "distance": "squared"}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_levels = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


def extremes(data, levels, time):
    """A batch of four items, at one time, whose mean of any quadratic form is that over the whole distribution: each of clean and
    noise one standard deviation up or down."""
    batch = batch_of(data, levels, 4, time=time)
    signs = number([[1, 1], [1, -1], [-1, 1], [-1, -1]])[:, :, None, None, None]
    return replace(batch, clean=data.mean + data.std * signs[:, 0], noise=signs[:, 1].expand(4, *SHAPE))


def fitted(name, levels, times, batch=extremes, **knobs):
    """(roles, student) with an affine student fitted by the objective at these times."""
    data = two_gaussians(levels.path)
    student = Affine(levels.sigma(number(times)), SHAPE)
    roles = Plain(levels.path, data, {"student": student})
    batches = [batch(data[1], levels, time) for time in times]
    fit(lambda each: OBJECTIVES[name](roles, each, **knobs), student, batches, steps=400)
    return roles, student


@every_levels
@pytest.mark.parametrize("name", ["guidance", "gft"])
def test_the_best_student_is_the_guided_teacher(name, levels):
    times = [0.15, 0.4, 0.7]
    roles, student = fitted(name, levels, times, scale=3.0, **PLAIN)
    for time in times:
        batch = batch_of(roles.teachers[1], levels, time=time, seed=5)
        x, sigma = batch.noisy(batch.time)
        with torch.no_grad():
            assert_close(student(x, sigma), roles.guided(x, sigma, batch.cond, batch.negative, 3.0), 1e-6)


@every_levels
def test_strength_becomes_guidance(levels):
    """A student whose D moves with its strength from the conditional answer to the guided one is exact at every strength."""
    data = two_gaussians(levels.path)

    class Slider(Exact):
        def forward(self, x, sigma, denoised, strength):
            return denoised + strength * 2.0 * (denoised - data[0](x, sigma)) + self.shift

    roles = Plain(levels.path, data, {"student": Slider(None)})
    strengths = []
    for step in range(5):
        batch = batch_of(data[1], levels, 4, step=step)
        assert OBJECTIVES["guidance"](roles, batch, scale=3.0, strength_is_guidance=True, **PLAIN).max() < 1e-20
        strengths.append(batch.draws.shared("strength"))
    assert len(set(strengths)) == 5
    assert OBJECTIVES["guidance"](roles, batch, scale=4.0, strength_is_guidance=True, **PLAIN).min() > 1e-4


@every_levels
@pytest.mark.parametrize("phases, substeps", [(4, 6), (1, 9)])
def test_a_phased_student_repeats_the_teachers_path_at_the_edges(phases, substeps, levels):
    data = two_gaussians(levels.path)
    grid = levels.grid(phases * substeps)

    def euler(x, sigmas):
        for sigma, sigma_next in pairwise(sigmas):
            denoised = data[0](x, sigma) + 3.0 * (data[1](x, sigma) - data[0](x, sigma))
            x = x + (sigma_next - sigma) * (x - denoised) / sigma
        return x

    def student(x, sigma):
        """Steps the teacher through the rest of its phase, and says which D makes that one step."""
        first = int((grid - sigma[0]).abs().argmin())
        assert first % substeps == 0
        path = grid[first : first + substeps + 1]
        return target(euler(x, path), x, sigma, path[-1].expand_as(sigma))

    roles = Plain(levels.path, data, {"student": Exact(student)})
    knobs = {"phases": phases, "substeps": substeps, "at_edge": 1.0, "scale": 3.0, **PLAIN}
    for step, time in enumerate([0.1, 0.4, 0.6, 0.9, 1.0]):
        assert OBJECTIVES["phased"](roles, batch_of(data[1], levels, 4, time=time, step=step), **knobs).max() < 1e-20
    x = start(levels.path, randn(3, *SHAPE), levels.sigma_max)
    end = solve(lambda x, sigma: student(x, sigma), x, levels.grid(phases)[:, None].expand(-1, 3))
    assert_close(end, euler(x, grid), 1e-11)


@every_levels
@pytest.mark.parametrize("solver, order", [("ddim", 2), ("heun", 3)])
def test_the_exact_consistency_function_leaves_only_the_solvers_error(solver, order, levels):
    data = two_gaussians(levels.path)
    roles = Plain(levels.path, data, {"student": Exact(Moved(data[1]))})
    counts, batch = [20, 40, 80], batch_of(data[1], levels, 16, time=0.5)
    knobs = {"scale": 1.0, "solver": solver, **PLAIN}
    losses = [OBJECTIVES["consistency"](roles, batch, first=n, last=n, **knobs).sqrt().mean().item() for n in counts]
    assert order - 0.3 < convergence(losses, counts) < order + 0.5
    wrong = Plain(levels.path, data, {"student": Exact(lambda x, sigma: data[1](x, sigma))})
    assert OBJECTIVES["consistency"](wrong, batch, first=80, last=80, **knobs).sqrt().mean() > 20 * losses[-1]


@every_levels
@pytest.mark.parametrize("phases", [2, 4])
def test_the_exact_jump_to_the_phases_end_leaves_only_the_solvers_error(phases, levels):
    data = two_gaussians(levels.path)

    def student(x, sigma):
        end = levels.sigma(torch.ceil(levels.time(sigma) * phases - 1e-9).sub(1) / phases)
        return target(data[1].exact(x, sigma, end), x, sigma, end)

    roles, counts = Plain(levels.path, data, {"student": Exact(student)}), [16, 32, 64]
    batch = batch_of(data[1], levels, 16, time=0.5 if phases == 2 else 0.6875)
    knobs = {"phases": phases, "scale": 1.0, "solver": "heun", **PLAIN}
    losses = [OBJECTIVES["trajectory"](roles, batch, first=n, last=n, **knobs).sqrt().mean().item() for n in counts]
    assert 2.6 < convergence(losses, counts) < 3.6


@every_levels
def test_trajectory_with_one_phase_is_consistency(levels):
    data = two_gaussians(levels.path)
    roles = Plain(levels.path, data, {"student": Exact(lambda x, sigma: torch.tanh(x) + append_dims(sigma, x))})
    batch, knobs = batch_of(data[1], levels), {"first": 12, "last": 12, "scale": 2.0}
    a, b = (OBJECTIVES[name](roles, batch, **knobs) for name in ("trajectory", "consistency"))
    assert OBJECTIVES["consistency"](roles, batch, **knobs).min() > 1e-3
    assert_close(OBJECTIVES["trajectory"](roles, batch, phases=1, **knobs), b, 1e-12)
    assert (a - b).abs().max() > 1e-3


def test_comparing_where_steps_land_is_comparing_d_but_for_a_weight():
    x, landed = randn(4, *SHAPE), randn(4, *SHAPE, seed=1)
    sigma, end = number([0.9, 0.7, 0.5, 0.3]), number([0.6, 0.1, 0.4, 0.0])
    of_x, of_d = (randn(4, *SHAPE, seed=2).requires_grad_() for _ in range(2))
    ((jump(x, sigma, end, of_x) - landed) ** 2 / append_dims((1 - end / sigma) ** 2, x)).sum().backward()
    ((of_d - target(landed, x, sigma, end)) ** 2).sum().backward()
    assert_close(of_x.grad, of_d.grad, 1e-12)


@every_levels
def test_after_reflow_one_step_is_exact(levels):
    data = two_gaussians(levels.path)[1]
    one = levels.sigma_max[None]

    def pairs(data, levels, time):
        batch = extremes(data, levels, time)
        return replace(batch, clean=data.exact(start(levels.path, batch.noise, one), one, torch.zeros_like(one)))

    _, student = fitted("reflow", levels, [1.0], pairs, at_start=1.0, **PLAIN)
    x = start(levels.path, randn(8, *SHAPE, seed=9), one)
    with torch.no_grad():
        denoised = student(x, one.expand(8))
    assert_close(jump(x, one.expand(8), torch.zeros(8, dtype=torch.float64), denoised), data.exact(x, one, 0 * one), 1e-4)


@every_levels
def test_annealed_reflow_begins_with_any_noise_and_ends_with_the_pairs(levels):
    data = two_gaussians(levels.path)
    seen = []
    roles = Plain(levels.path, data, {"student": Exact(lambda x, sigma: seen.append((x, sigma)) or x)})
    for progress in (0.0, 0.25, 0.5, 0.9):
        batch = batch_of(data[1], levels, 400, time=0.5, progress=progress)
        OBJECTIVES["reflow"](roles, batch, anneal=0.5, at_start=0.0)
        x, sigma = seen[-1]
        noise = (x - append_dims(levels.path.alpha(sigma), x) * batch.clean) / append_dims(sigma, x)
        share = max(0.0, 1 - progress / 0.5)
        kept = torch.corrcoef(torch.stack([noise.flatten(), batch.noise.flatten()]))[0, 1]
        assert kept == pytest.approx((1 - share**2) ** 0.5, abs=0.05) and noise.var() == pytest.approx(1, abs=0.05)


def test_reflow_begins_as_many_at_pure_noise_as_told():
    data, seen = two_gaussians(LEVELS["flow"].path), []
    roles = Plain(LEVELS["flow"].path, data, {"student": Exact(lambda x, sigma: seen.append(sigma) or x)})
    OBJECTIVES["reflow"](roles, batch_of(data[1], LEVELS["flow"], 1000, time=0.5), at_start=0.3)
    assert abs((seen[0] == 1).double().mean() - 0.3) < 0.05


# Progressive distillation


def test_progressive_halves_and_takes_its_last_student_for_its_teacher():
    levels = LEVELS["flow"]
    data = two_gaussians(levels.path)
    before = Exact(lambda x, sigma: 0.3 * x)
    roles = Plain(levels.path, data, {"student": Exact(lambda x, sigma: 0.2 * x), "previous": before})
    knobs = {"first": 8, "last": 2}
    assert stages(8, 2) == 3 and [steps_of(8, 2, stage) for stage in range(3)] == [8, 4, 2]
    assert [stage_of(knobs, progress) for progress in (0.0, 0.3, 0.34, 0.66, 0.67, 1.0)] == [0, 0, 1, 1, 2, 2]
    batch = batch_of(data[1], levels, 4, time=1.0, progress=0.5)
    got = OBJECTIVES["progressive"](roles, batch, **knobs, **PLAIN)
    x = start(levels.path, batch.noise, number([1.0]))
    middle = 0.875 * x + 0.125 * 0.3 * x
    end = 0.75 / 0.875 * middle + (1 - 0.75 / 0.875) * 0.3 * middle
    assert_close(got, ((0.2 * x - (end - 0.75 * x) / 0.25) ** 2).mean((1, 2, 3)), 1e-12)
    assert {role for role, *_ in roles.calls} == {"student", "previous"}


# Options of consistency


def test_noise_levels_double_over_the_run():
    assert [levels_at(progress / 8, 5, 40) for progress in range(8)] == [5, 5, 10, 10, 20, 20, 40, 40]
    assert levels_at(1.0, 5, 33) == 33 and levels_at(0.0, 7, 7) == 7


@every_levels
def test_a_noisy_jump_keeps_the_distribution_and_is_ddims(levels):
    path, sigma, sigma_next = levels.path, number([0.7, 0.9]), number([0.4, 0.2])
    x, denoised, noise = randn(2, *SHAPE), randn(2, *SHAPE, seed=1), randn(2, *SHAPE, seed=2)
    assert_close(noisy_jump(path, x, sigma, sigma_next, denoised, 0.0, noise), jump(x, sigma, sigma_next, denoised), 1e-13)
    to, up = sigma_next / path.alpha(sigma_next), sigma / path.alpha(sigma)  # k-diffusion's ancestral step, on the VE scale
    added = 0.6 * (to**2 * (up**2 - to**2) / up**2).sqrt()
    down = (to**2 - added**2).sqrt()
    ve = jump(x / append_dims(path.alpha(sigma), x), up, down, denoised) + append_dims(added, x) * noise
    expected = ve * append_dims(path.alpha(sigma_next), x)
    assert_close(noisy_jump(path, x, sigma, sigma_next, denoised, 0.6, noise), expected, 1e-13)


@every_levels
def test_without_a_teacher_the_step_renoises_the_clean_latent(levels):
    data = two_gaussians(levels.path)
    seen = []
    roles = Plain(levels.path, data, {"student": Exact(lambda x, sigma: seen.append((x, sigma)) or x)})
    batch = batch_of(data[1], levels, 8, time=0.5)
    OBJECTIVES["consistency"](roles, batch, teacher="none", first=10, last=10)
    (x_next, sigma_next), (x, sigma) = seen
    for got, at in ((x_next, sigma_next), (x, sigma)):
        assert_close(got, append_dims(levels.path.alpha(at), x) * batch.clean + append_dims(at, x) * batch.noise, 1e-13)
    assert (sigma_next < sigma).all() and all(role == "student" for role, *_ in roles.calls[1:])


# What holds for all of them


def roles_of(levels, shift=0.0):
    students = {role: Exact(lambda x, sigma: torch.tanh(x) * 0.5 + shift) for role in ("student", "ema", "previous")}
    return Plain(levels.path, two_gaussians(levels.path), students)


def variants(name):
    """Settings that between them reach every role."""
    more = {"consistency": [{"toward": "average", "eta": 0.5}], "trajectory": [{"toward": "average"}]}
    return [{}, {"weight": "x0", "distance": "huber_each"}, *more.get(name, [])]


@every_levels
@every_objective
def test_gradients_reach_the_student_alone_and_by_one_call(name, levels):
    for knobs in variants(name):
        roles = roles_of(levels)
        OBJECTIVES[name](roles, batch_of(roles.teachers[1], levels, 8, progress=0.5), **knobs).sum().backward()
        assert roles.students["student"].shift.grad.abs() > 0
        assert roles.students["ema"].shift.grad is None and roles.students["previous"].shift.grad is None
        assert [(role, graded) for role, _, graded in roles.calls if graded] == [("student", True)]


@every_levels
@every_objective
def test_items_are_the_same_in_any_micro_batch(name, levels):
    for knobs in variants(name):
        roles = roles_of(levels)

        def loss(items, roles=roles, knobs=knobs):
            return OBJECTIVES[name](roles, batch_of(roles.teachers[1], levels, 6, progress=0.3, items=items), **knobs)

        together = loss(range(6))
        assert together.shape == (6,) and together.isfinite().all()
        assert_close(torch.cat([loss([0, 1]), loss([2, 3, 4]), loss([5])]), together, 1e-13)


@every_objective
def test_a_setting_out_of_range_is_named(name):
    batch = batch_of(two_gaussians(LEVELS["flow"].path)[1], LEVELS["flow"], 2)
    with pytest.raises(ValueError, match="distance is 'far'"):
        OBJECTIVES[name](roles_of(LEVELS["flow"]), batch, distance="far")
    with pytest.raises(ValueError, match="unknown setting strenght=1"):
        OBJECTIVES[name](roles_of(LEVELS["flow"]), batch, strenght=1)
