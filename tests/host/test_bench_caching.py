"""The benchmarks of caches, and the rivals in them: each skips by the rule it is known for, and changes nothing where it skips nothing."""

from types import SimpleNamespace

import pytest
import torch

from bench import cache_rivals, caching, caching_quality, hosted
from bench.cache_rivals import relative_change
from bench.work import Work

STEPS = 10
NEUTRAL = {  # rival that skips nothing: which of the bundled models it is for
    "first block, transformer": ("shapes-dit", lambda model: cache_rivals.first_block_cache(model, 0.0)),
    "first block, UNet": ("shapes-unet", lambda model: cache_rivals.first_block_cache(model, 0.0)),
    "TeaCache": ("shapes-dit", lambda model: cache_rivals.tea_cache(model, 0.0)),
    "DeepCache": ("shapes-unet", lambda model: cache_rivals.deep_cache(model, 1)),
    "DeepCache, three blocks deep": ("shapes-unet", lambda model: cache_rivals.deep_cache(model, 1, 3)),
    "core EasyCache": ("shapes-dit", lambda model: cache_rivals.core_cache(model, "EasyCache", 0.0)),
    "core LazyCache": ("shapes-unet", lambda model: cache_rivals.core_cache(model, "LazyCache", 0.0)),
}


@pytest.fixture(scope="module")
def tasks(nodes):
    return {name: hosted.bundled(name) for name in ("shapes-dit", "shapes-unet")}


def sampled(task, model=None):
    """(latent, work of each call of the network) of one run of Euler."""
    latents, calls = [], []
    model = (model or task.model).clone()
    with Work(task.model) as work:

        def apply_model(executor, *args, **kwargs):
            denoised = executor(*args, **kwargs)
            calls.append(work.take())
            return denoised

        model.add_wrapper_with_key("apply_model", "test", apply_model)
        latents.append(task.sample(hosted.core("euler"), task.sigmas(STEPS), model))
    return latents[0], calls


@pytest.mark.parametrize("rival", NEUTRAL)
def test_a_rival_that_skips_nothing_changes_nothing(tasks, rival):
    name, neutral = NEUTRAL[rival]
    task = tasks[name]
    full, whole = sampled(task)
    latent, calls = sampled(task, neutral(task.model))
    assert torch.equal(latent, full)
    assert len(calls) == STEPS and sum(calls) <= sum(whole) * 1.03  # TeaCache computes the modulated input once more


@pytest.mark.parametrize("rival", ["first block, transformer", "first block, UNet", "TeaCache", "DeepCache"])
def test_two_runs_of_a_rival_are_equal(tasks, rival):
    makes = {
        "first block, transformer": lambda model: cache_rivals.first_block_cache(model, 0.3),
        "first block, UNet": lambda model: cache_rivals.first_block_cache(model, 0.3),
        "TeaCache": lambda model: cache_rivals.tea_cache(model, 0.5),
        "DeepCache": lambda model: cache_rivals.deep_cache(model, 3),
    }
    task = tasks[NEUTRAL[rival][0]]
    model = makes[rival](task.model)
    (first, _), (second, calls) = sampled(task, model), sampled(task, model)
    assert torch.equal(first, second)
    assert not torch.equal(first, sampled(task)[0]) and min(calls) < 0.5 * max(calls)
    assert torch.equal(sampled(task)[0], sampled(task)[0])


def test_deep_cache_runs_every_nth_step_and_less_in_between_the_shallower_it_is(tasks):
    whole = {}
    for depth in (1, 2, 3):
        _, calls = sampled(tasks["shapes-unet"], cache_rivals.deep_cache(tasks["shapes-unet"].model, 3, depth))
        assert [n for n, call in enumerate(calls) if call == max(calls)] == [0, 3, 6, 9]
        whole[depth] = min(calls) / max(calls)
    assert whole[1] < whole[2] < whole[3] < 1


def test_deep_cache_at_a_step_without_change_is_exact(tasks):
    """What it keeps belongs where it puts it: the same input twice gives the same output."""
    task = tasks["shapes-unet"]
    for depth in (1, 2, 3):
        assert_second_call_equals_first(task, cache_rivals.deep_cache(task.model, 2, depth))


@pytest.mark.parametrize("name", ["shapes-dit", "shapes-unet"])
def test_first_block_cache_at_a_step_without_change_is_exact(tasks, name):
    assert_second_call_equals_first(tasks[name], cache_rivals.first_block_cache(tasks[name].model, 0.1))


def test_tea_cache_at_a_step_without_change_is_exact(tasks):
    assert_second_call_equals_first(tasks["shapes-dit"], cache_rivals.tea_cache(tasks["shapes-dit"].model, 0.1))


def assert_second_call_equals_first(task, model):
    """A sampler that asks for the same prediction twice: skipped the second time, and the same up to rounding."""
    import comfy.samplers

    found = []

    def twice(denoise, x, sigmas, extra_args=None, callback=None, disable=None):
        for _ in range(2):
            found.append(denoise(x, sigmas[2] * x.new_ones(len(x)), **extra_args))
        return x

    with Work(task.model) as work:
        task.sample(comfy.samplers.KSAMPLER(twice), task.sigmas(STEPS))
        uncached = work.take()
        task.sample(comfy.samplers.KSAMPLER(twice), task.sigmas(STEPS), model)
        assert work.take() < 0.9 * uncached
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[3], found[2], rtol=1e-4, atol=1e-4)


@pytest.fixture
def rule(tasks):
    def make(**limits):
        skips = cache_rivals.first_block_rule(tasks["shapes-dit"].model, 0.1, **limits)
        memory = cache_rivals.Memory()
        return lambda value, sigma=0.5: skips(memory, torch.full((2, 3), value), {"sigmas": torch.tensor([sigma])})

    return make


def test_first_block_rule_compares_with_the_last_evaluation(rule):
    skips = rule()
    found = [skips(value) for value in (1.0, 1.05, 1.09, 1.11, 1.15, 1.0)]
    assert found == [False, True, True, False, True, True]  # 1.11 is kept: 1.0 is within a tenth of it


def test_first_block_rule_has_its_limits(rule, tasks):
    skips = rule(most_in_a_row=2)
    assert [skips(1.0) for _ in range(7)] == [False, True, True, False, True, True, False]
    skips, level = rule(start=0.3, end=0.6), tasks["shapes-dit"].model.get_model_object("model_sampling").percent_to_sigma
    assert [skips(1.0, level(share)) for share in (0.0, 0.25, 0.35, 0.55, 0.65)] == [False, False, True, True, False]


def test_the_polynomial_is_evaluated_highest_power_first():
    assert cache_rivals.polynomial((2.0, -1.0, 3.0), 2.0) == 9.0
    assert cache_rivals.polynomial((1.0, 0.0), 0.3) == 0.3


def test_tea_cache_sums_up_the_changes_from_step_to_step(tasks, monkeypatch):
    """With every change a tenth, each step costs a tenth, or what the polynomial makes of it; the last step always runs."""
    monkeypatch.setattr(cache_rivals, "relative_change", lambda new, old: 0.1)
    task = tasks["shapes-dit"]

    def whole(threshold, **knobs):
        _, calls = sampled(task, cache_rivals.tea_cache(task.model, threshold, **knobs))
        return [n for n, call in enumerate(calls) if call > 0.5 * max(calls)]

    assert whole(0.25) == [0, 3, 6, 9]
    assert whole(0.35) == [0, 4, 8, 9]
    assert whole(0.25, coefficients=(2.0, 0.0)) == [0, 2, 4, 6, 8, 9]


def test_the_fitted_polynomial_follows_what_it_was_fitted_to(tasks):
    task = tasks["shapes-dit"]
    coefficients = cache_rivals.fitted_coefficients(task, hosted.core("euler"), task.sigmas(20))
    assert len(coefficients) == cache_rivals.DEGREE + 1
    _, calls = sampled(task, cache_rivals.tea_cache(task.model, 0.2, coefficients))
    assert 2 <= sum(call > 0.5 * max(calls) for call in calls) < STEPS


def test_relative_change():
    assert relative_change(torch.tensor([1.0, -3.0]), torch.tensor([2.0, -2.0])) == 0.5


def test_work_is_that_of_the_layers():
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(48, 5))
    with Work(SimpleNamespace(model=SimpleNamespace(diffusion_model=network))) as work:
        network(torch.zeros(7, 2, 4, 4))
        assert work.take() == 7 * (16 * 3 * 2 * 9 + 48 * 5)
        assert work.take() == 0
    network(torch.zeros(7, 2, 4, 4))
    assert work.take() == 0


class Task:
    """Tells in which order models were sampled: uncached "-"."""

    def __init__(self):
        self.order, self.model = "", SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Identity()))

    def sample(self, sampler, sigmas, model=None):
        self.order += model or "-"
        return self.order


def test_cached_runs_lie_between_uncached_ones(monkeypatch):
    monkeypatch.setattr(caching, "BETWEEN", 3)
    for models, order in (("a", "-a-"), ("abc", "-abc-"), ("abcd", "-abc-d-"), ("abcdefg", "-abc-def-g-")):
        task = Task()
        cached, uncached, before = caching.alternating(task, models, None, None)
        assert task.order == order
        for (latent, *_), number in zip(cached, before, strict=True):
            assert len(uncached[number][0]) < len(latent) < len(uncached[number + 1][0])


def test_the_caching_benchmark_runs_every_cache_beside_its_rivals(nodes, monkeypatch):
    monkeypatch.setattr(caching, "STRENGTHS", (1.0,))
    monkeypatch.setattr(caching, "PRESETS", {"shapes-dit": ("automatic", "taylor"), "shapes-unet": ("deep_branch",)})
    thresholds = {name: dict.fromkeys(rivals, (0.0,)) | {"LazyCache": (0.0, 0.5)} for name, rivals in caching.THRESHOLDS.items()}
    monkeypatch.setattr(caching, "THRESHOLDS", thresholds)
    monkeypatch.setattr(caching, "DEEP", ((1, 1), (3, 2)))
    result = caching.measure(samplers=("euler",), steps=(STEPS,), pictures=2)
    for name in caching.MODELS:
        rows = {(row["cache"], row["setting"]): row for row in result.rows if row["model"] == name}
        neutral = [row for (_, setting), row in rows.items() if setting in (0.0, "every 1, depth 1")]
        skipping = [row for row in rows.values() if row not in neutral]
        assert {cache for cache, setting in rows if setting == 1.0} == set(caching.PRESETS[name])
        assert len(neutral) == (5 if name == "shapes-dit" else 4)
        assert all(row["error"] == 0 and row["PSNR"] == 100 and row["saved"] < 0.001 for row in neutral)
        assert all(0 < row["error"] < 2 and row["PSNR"] < 100 and 0 < row["saved"] < 1 for row in skipping)


def row(cache, faster, error, decibels, model="shapes-dit"):
    return {"model": model, "problem": model, "cache": cache, "times faster": faster, "error": error, "PSNR": decibels}


def test_the_fastest_within_a_limit():
    rows = [row("a", *values) for values in ((1.5, 0.05, 40), (2.0, 0.1, 25), (3.0, 0.3, 35))]
    assert [caching.fastest(rows, error) for error in (0.01, 0.05, 0.2, 1.0)] == [1.0, 1.5, 2.0, 3.0]
    assert [caching.fastest(rows, decibels=decibels) for decibels in (50, 38, 30, 20)] == [1.0, 1.5, 3.0, 3.0]


def test_the_caching_benchmark_says_what_was_seen():
    rows = [row("ours", 2.0, 0.04, 35), row("ours", 3.0, 0.15, 20), row("rival: a", 1.6, 0.09, 31), row("rival: b", 2.4, 0.2, 25)]
    rows += [row("ours", 2.5, 0.3, 32, "shapes-unet"), row("rival: a", 1.5, 0.3, 31, "shapes-unet")]
    result = caching.result_of(rows, 4)
    assert "shapes-dit: at equal error 1.25 to 2.00 times the speed of the best rival, 1.46 in the mean" in result.question  # 2, 1.25, 1.25
    assert "shapes-unet: at equal error 1.00 times" in result.question
    assert "at 30 dB 2.50 times faster than uncached, the best rival 1.50" in result.question
    (ours,) = (line for line in result.table if line["problem"] == "shapes-dit" and line["cache"] == "ours")
    assert list(ours.values()) == ["shapes-dit", "ours", 2.0, 2.0, 3.0, 2.0]


def test_a_rival_is_matched_to_the_saving(tasks):
    task = tasks["shapes-unet"]
    ladder = {n: cache_rivals.deep_cache(task.model, n) for n in (1, 2, 5, 10)}
    with Work(task.model) as work:
        chosen = {saved: caching_quality.nearest(ladder, task, STEPS, work, saved) for saved in (0.0, 0.4, 0.9)}
    assert [(setting, model is ladder[setting]) for setting, model in chosen.values()] == [(1, True), (2, True), (10, True)]


def test_the_quality_benchmark_examines_ours_and_rivals_at_equal_savings(nodes, monkeypatch):
    name = "shapes-dit"
    monkeypatch.setattr(caching_quality, "OURS", {name: (("automatic", 0.0), ("automatic", 1.0))})
    monkeypatch.setattr(caching_quality, "LADDER", (0.0, 0.5))
    uncached, nothing, ours, *rivals = caching_quality.measure((name,), count=3, batch=3, steps=STEPS).rows
    assert uncached["cache"] == "uncached" and ours["saved"] > 0 and len(rivals) == 3
    figures = ("saved", "right", "FID", "KID")
    for same in (nothing, *rivals):  # matched to ours that saves nothing
        assert [same[key] for key in figures] == pytest.approx([uncached[key] for key in figures], abs=2e-3)
        assert same["lost"] == 0
