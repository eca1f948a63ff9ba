"""What a cache remembers of whom: steps of the sampler, conditions of a batch, memory, and how often it waits for the device."""

import sys

import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_distillery.nodes.host_steps import Steps
from comfyui_distillery.samplers.caching import POLICIES
from test_cache import EVERY_SECOND, STEPS, assert_same, every_second, fitting, from_parts
from test_cache_composition import controlled, eps, sample  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

# Steps of the sampler

LEVELS = [10.0, 8.0, 6.0, 4.0, 2.0, 0.0]


def steps_of(events, sigmas=LEVELS):
    """The step of each evaluation. events: noise levels that are evaluated, and ("announced", step)."""
    steps, found = Steps(sigmas), []
    for event in events:
        if isinstance(event, tuple):
            steps.announced(event[1])
        else:
            steps.evaluated(event)
            found.append(steps.index)
    return found


def announced_first(*evaluations):
    """Samplers that announce a step after its first evaluation: the levels of each step."""
    for step, (first, *others) in enumerate(evaluations):
        yield from (first, ("announced", step), *others)


@pytest.mark.parametrize("evaluations, found", [
    ([[10.0], [8.0], [6.0], [4.0], [2.0]], [0, 1, 2, 3, 4]),
    ([[10.0, 8.0], [8.0, 6.0], [6.0, 4.0], [4.0, 2.0], [2.0]], [0, 1, 1, 1, 2, 2, 3, 3, 4]),  # Heun: its first second is not known yet
    ([[10.0, 9.0], [8.0, 7.0], [6.0, 5.0], [4.0, 3.0], [2.0]], [0, 0, 1, 1, 2, 2, 3, 3, 4]),  # DPM-2
    # heunpp2: its last steps have fewer, so that the last is taken for the one before
    ([[10.0, 8.0, 6.0], [8.0, 6.0, 4.0], [6.0, 4.0, 2.0], [4.0, 2.0], [2.0]], [0, 1, 2, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
    ([[10.0], [8.0, 8.0], [6.0, 6.0], [4.0, 4.0], [2.0, 2.0]], [0, 1, 2, 2, 2, 3, 3, 4, 4]),  # corrected, but for the first
])  # fmt: skip
def test_an_evaluation_belongs_to_the_samplers_own_step(evaluations, found):
    assert steps_of(announced_first(*evaluations)) == found


def test_without_announcements_or_with_others_the_noise_level_tells_the_step():
    assert steps_of([10.0, 8.0, 8.0, 6.0]) == [0, 1, 1, 2]
    adaptive = [10.0, 9.5, ("announced", 0), 9.0, 8.5, ("announced", 1), 7.5, 5.0, ("announced", 2), 3.0, 1.0]
    assert steps_of(adaptive) == [0, 0, 0, 0, 1, 2, 3, 4]


def test_noise_added_again_opens_the_later_step_of_that_level():
    rising = [10.0, 6.0, 2.0, 6.0, 2.0, 0.0]
    assert steps_of(announced_first(*([level] for level in rising[:-1])), rising) == [0, 1, 2, 3, 4]


# Conditions of a batch


def alone(model):
    """A clone for which core never finds the memory for two conditions in one call."""
    apart = model.clone()
    apart.add_object_patch("memory_required", lambda *args, **kwargs: 1e18)
    return apart


@pytest.mark.parametrize("policy", ["interval", "rate", "budget"])
def test_two_conditions_in_one_call_are_remembered_as_in_two(nodes, built, policy):
    """Where each step is skipped for both: then it does not matter how core puts them together."""
    model, shape = built
    threshold = next(iter(POLICIES[policy].neutral))
    knobs = {"interval": 2} if policy == "interval" else {threshold: 10.0, "most_in_a_row": 1}
    noise = tiny.noise_for(shape, [1, 2])
    for site in fitting(model):
        (together, report), (apart, other) = (
            from_parts(nodes, given, policy, forecast=("newton", {"order": 2}), site=site, **knobs) for given in (model, alone(model))
        )
        torch.testing.assert_close(sample(together, noise), sample(apart, noise), rtol=2e-4, atol=2e-4)
        ran = [[row["step"] for row in tiny.totals(told)[1] if row["decision"] == "run"] for told in (report, other)]
        assert ran[0] == ran[1] and len(ran[0]) < STEPS
        calls = [tiny.totals(told)[0]["calls"] for told in (report, other)]
        assert calls[1] == 2 * calls[0]


def test_the_positive_goes_on_where_guidance_leaves_out_the_negative(nodes, built):
    """The prompt that stays is skipped at the same steps, whether or not the other is in its call."""
    model, shape = built
    guided = tiny.guided(nodes, model, "every_nth", every=3)
    patched, report = every_second(nodes, guided, forecast="newton")
    sample(patched, tiny.noise_for(shape, [1, 2]))
    rows = tiny.totals(report)[1]
    assert {row["step"] for row in rows if row["evaluations"].get("cond")} == EVERY_SECOND
    assert sum(row["evaluations"].get("uncond", 0) for row in rows) < len(EVERY_SECOND)


def test_conditions_of_one_call_are_skipped_where_all_of_them_may_be(nodes, eps):  # noqa: F811
    """The negative begins at step 4, so that the positive is evaluated with it."""
    model, shape = eps
    sigmas = tiny.schedule(model, STEPS)
    start = tiny.percent_between(model, float(sigmas[3]), float(sigmas[4]))
    late = [[tokens, {**rest, "start_percent": start}] for tokens, rest in tiny.prompt(2)]
    patched, report = every_second(nodes, model)
    assert sample(patched, tiny.noise_for(shape, [1]), negative=late).isfinite().all()
    rows = tiny.totals(report)[1]
    assert {row["step"] for row in rows if row["decision"] == "run"} == EVERY_SECOND | {4}
    assert rows[4]["evaluations"] == {"cond": 1, "uncond": 1} and rows[4]["reason"] == "nothing to skip with yet"


def test_a_patch_that_is_made_anew_for_each_call_is_the_same_patch(nodes, eps):  # noqa: F811
    """As core makes GLIGEN's."""
    model, shape = eps

    def calc_cond_batch(executor, base, conds, x, timestep, options):
        patches = {"middle_patch": [lambda h, extra: h]}
        transformer_options = {**options["transformer_options"], "patches": patches}
        return executor(base, conds, x, timestep, {**options, "transformer_options": transformer_options})

    patched, report = every_second(nodes, model)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "test", calc_cond_batch)
    sample(patched, tiny.noise_for(shape, [1]))
    assert {row["step"] for row in tiny.totals(report)[1] if row["decision"] == "run"} == EVERY_SECOND


def test_what_was_kept_too_long_ago_is_evaluated(nodes, built):
    """The negative is asked for at steps 0, 4, 8 and 12; steps in which it is not asked for count as skipped."""
    model, shape = built
    for most, ran in ((4, [0, 8]), (8, [0, 12])):
        guided = tiny.guided(nodes, model, "every_nth", every=4, warm_up=1)
        patched, report = from_parts(nodes, guided, interval=100, first_steps=1, most_in_a_row=most)
        sample(patched, tiny.noise_for(shape, [1]), steps=16)
        rows = tiny.totals(report)[1]
        assert [row["step"] for row in rows if row["evaluations"].get("uncond")] == ran


@pytest.mark.parametrize("name", ["dpm_2_ancestral", "dpmpp_2s_ancestral", "heunpp2"])
def test_history_outlasts_a_step_that_goes_back_or_ends_a_rounding_error_away(nodes, eps, name):  # noqa: F811
    model, shape = eps
    patched, report = every_second(nodes, model)
    sample(patched, tiny.noise_for(shape, [1]), sampler=name, steps=20)
    rows = tiny.totals(report)[1]
    assert sum(row["decision"] == "skip" for row in rows) >= 8
    assert not any(row["reason"] == "nothing to skip with yet" for row in rows)


# Memory


def test_what_is_kept_is_counted(nodes, built):
    """Reuse keeps one tensor of the latent's size for each condition, a parabola three."""
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    for forecast, tensors in (("reuse", 1), (("newton", {"order": 2}), 3)):
        patched, report = every_second(nodes, model, forecast=forecast)
        sample(patched, noise)
        assert tiny.totals(report)[0]["kept_memory"] == tensors * 2 * noise.nbytes
    patched, report = from_parts(nodes, model, "rate")  # which compares with the output and two inputs, at times the same one
    sample(patched, noise)
    assert tiny.totals(report)[0]["kept_memory"] in (3 * 2 * noise.nbytes, 4 * 2 * noise.nbytes)


def test_above_the_limit_the_run_goes_on_uncached(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    needed = 2 * noise.nbytes / 2**20
    plain, cached = sample(model, noise), sample(every_second(nodes, model)[0], noise)
    parts = {"policy": {"policy": "interval", "interval": 2}, "forecast": {"forecast": "reuse"}, "site": {"site": "prediction"}}
    for limit, expected in ((0.99 * needed, plain), (1.01 * needed, cached)):
        patched, report = tiny.run(nodes["Distillery_CacheParts"], model=model, **parts, memory_limit=limit)
        assert_same(sample(patched, noise), expected)
        told = [row["reason"] for row in tiny.totals(report)[1] if "above memory_limit" in row["reason"]]
        assert len(told) == (STEPS if limit < needed else 0)


def test_offloaded_is_the_same(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    for preset in ("automatic", "first_block", "deep_branch"):
        results = [
            sample(tiny.run(nodes["Distillery_Cache"], model=model, preset=preset, strength=1.0, offload=offload)[0], noise)
            for offload in (False, True)
        ]
        assert_same(*results)


# Waits for the device


class Waits(TorchDispatchMode):
    """Counts how often a number is taken out of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["first_block", "accumulated", "magnitude", "rate", "stability", "budget"])
def test_one_wait_for_the_noise_level_and_one_for_all_else(nodes, built, policy, monkeypatch):
    """For every site, however many tensors it keeps; the second even where two conditions share the call."""
    model, shape = built
    noise, threshold, asked = tiny.noise_for(shape, [1, 2]), next(iter(POLICIES[policy].neutral)), []
    pack = sys.modules[nodes["Distillery_Cache"].__module__.replace("nodes.cache", "nodes.host_cache")]  # as ComfyUI loads it
    numbers = pack.numbers
    monkeypatch.setattr(pack, "numbers", lambda tensors: asked.append(tensors) or numbers(tensors))
    for site in fitting(model):
        patched, _ = from_parts(nodes, model, policy, site=site, **{threshold: 10.0})
        asked.clear()
        with Waits() as plain:
            sample(model, noise)
        with Waits() as cached:
            sample(patched, noise)
        assert len(asked) == STEPS
        assert cached.count - plain.count <= STEPS


# Decoding ahead


def test_decoding_ahead_is_decoding_one_after_another(nodes, eps):  # noqa: F811
    model, shape = eps
    noise = tiny.noise_for(shape, [1, 2])
    for forecast in ("reuse", "newton"):
        (one, told), (ahead, report) = (
            from_parts(nodes, model, interval=4, forecast=forecast, site=("encoder", {"parallel": parallel})) for parallel in (False, True)
        )
        torch.testing.assert_close(sample(ahead, noise), sample(one, noise), rtol=1e-4, atol=1e-4)
        rows, before = tiny.totals(report)[1], tiny.totals(told)[1]
        assert [row["decision"] for row in rows] == [row["decision"] for row in before]
        assert sum(row["blocks"].get("done", 0) for row in rows) == sum(row["blocks"]["done"] for row in before)
        assert all(row["blocks"].get("done", 0) == 0 for row in rows if row["decision"] == "skip")


def test_decoding_ahead_leaves_control_nets_and_further_evaluations_alone(nodes, eps):  # noqa: F811
    model, shape = eps
    noise = tiny.noise_for(shape, [1])
    for given in ({"positive": controlled(model, True)}, {"sampler": "heun"}, {"sampler": "dpm_2"}):
        one, ahead = (
            sample(from_parts(nodes, model, interval=3, site=("encoder", {"parallel": parallel}))[0], noise, **given)
            for parallel in (False, True)
        )
        torch.testing.assert_close(ahead, one, rtol=1e-4, atol=1e-4)


def test_decoding_ahead_takes_no_more_memory_than_there_is(nodes, eps):  # noqa: F811
    model, shape = eps
    noise, rows = tiny.noise_for(shape, [1]), []
    for given in (model, alone(model)):  # the latter has memory for no batch at all
        patched, report = from_parts(nodes, given, interval=4, site=("encoder", {"parallel": True}))
        sample(patched, noise)
        rows.append([row["blocks"].get("done", 0) for row in tiny.totals(report)[1] if row["decision"] == "skip"])
    assert not any(rows[0]) and all(rows[1])


def test_decoding_ahead_needs_steps_that_are_known_before(nodes, eps):  # noqa: F811
    model, _ = eps
    with pytest.raises(ValueError, match="policy Rate does not know which steps it will skip: use interval or mask"):
        from_parts(nodes, model, "rate", site=("encoder", {"parallel": True}))
