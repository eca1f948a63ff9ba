"""Skipping rules through the real CFGGuider and ModelPatcher, on eps, flow and video models: against core's own nodes."""

import comfy.model_management
import comfy.model_sampling
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from tiny import DROPS, assert_same

GUIDED = {"threshold": 1.01, "max_guided": 1000}  # adaptive that never skips: at work, unlike its neutral settings


@pytest.mark.parametrize("rule", SKIPS)
def test_neutral_is_core_bit_for_bit(nodes, built, rule):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched = tiny.guided(nodes, model, rule, **SKIPS[rule].neutral)
    assert_same(tiny.sample(patched, noise), tiny.sample(model, noise))


@pytest.mark.parametrize("rule", SKIPS)
def test_skipping_repeats_itself_and_leaves_cfg_1_and_the_input_model_alone(nodes, built, rule):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    before = tiny.sample(model, noise, steps=8)
    least = {"threshold": 0.0} if rule == "adaptive" else {}
    patched, report = tiny.guided_with_report(nodes, model, rule, **least)
    assert_same(tiny.sample(patched, noise, cfg=1.0, steps=8), tiny.sample(model, noise, cfg=1.0, steps=8))
    assert tiny.totals(report)[0]["branches"] == {"cond": 8}
    changed = tiny.sample(patched, noise, steps=8)
    guided = tiny.totals(report)[0]["branches"]
    assert guided["uncond"] < guided["cond"] == 8
    assert not torch.equal(changed, before)
    assert_same(tiny.sample(patched, noise, steps=8), changed)
    assert_same(tiny.sample(model, noise, steps=8), before)
    assert tiny.totals(report)[0]["branches"] == guided


def test_a_rule_at_work_that_skips_nothing_is_core_bit_for_bit(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **GUIDED)
    assert_same(tiny.sample(patched, noise), tiny.sample(model, noise))
    totals, rows = tiny.totals(report)
    assert totals["branches"] == {"cond": 4, "uncond": 4} and totals["calls"] == 4
    assert [row["decision"] for row in rows] == ["guide"] * 4 and "skipped" not in rows[-1]


EVALUATIONS = {"euler": (6, 3), "dpmpp_2m": (6, 3), "heun": (11, 5), "dpm_2": (11, 6)}  # at six steps; guided, with three


@pytest.mark.parametrize("sampler", EVALUATIONS)
def test_at_most_n_guided_steps_is_core_cfg_override_from_there(nodes, built, sampler):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS, max_guided=3)
    core = tiny.unguided_from(nodes, model, sigmas, 3)
    assert_same(*(tiny.sample(m, noise, sampler=sampler, sigmas=sigmas) for m in (patched, core)))
    totals, rows = tiny.totals(report)
    every, guided = EVALUATIONS[sampler]
    assert totals["branches"] == {"cond": every, "uncond": guided}
    assert sum(row.get("skipped", {}).get("uncond", 0) for row in rows) == every - guided
    assert [row["decision"] for row in rows[:2]] == ["guide"] * 2 and [row["decision"] for row in rows[3:]] == ["drop"] * 3
    assert rows[-1]["reason"] == "guided 3 steps"


@pytest.mark.parametrize("unit", ["percent", "sigma"])
def test_interval_is_core_cfg_override_outside_of_it(nodes, built, unit):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    core = tiny.unguided_from(nodes, tiny.unguided_from(nodes, model, sigmas, 4), sigmas, 0, 2)
    start, end = (tiny.percent_between(model, float(sigmas[i - 1]), float(sigmas[i])) for i in (2, 4))
    if unit == "sigma":
        start, end = float(sigmas[2]), float(sigmas[3])
    patched, report = tiny.guided_with_report(nodes, model, "interval", unit=unit, start=start, end=end)
    assert_same(*(tiny.sample(m, noise, sigmas=sigmas) for m in (patched, core)))
    totals, rows = tiny.totals(report)
    assert [row["decision"] for row in rows] == ["drop", "drop", "guide", "guide", "drop", "drop"]
    assert totals["branches"] == {"cond": 6, "uncond": 2} and "sigma outside" in rows[0]["reason"]


@pytest.mark.parametrize("reuse", ["difference", "unconditional", "nothing"])
def test_every_second_step_is_an_independent_loop(nodes, built, reuse):
    """Euler steps by hand on core's own predictions, at every second step with those of the step before."""
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    kept = {}

    def by_hand(args):  # core evaluates both at every step: it cannot tell
        cond, uncond, x, sigma = args["cond_denoised"], args["uncond_denoised"], args["input"], float(args["sigma"][0])
        step = int((sigmas >= sigma * 0.9999).sum()) - 1
        if step % 2 == 0:
            kept.update(difference=(uncond - cond) / sigma, unconditional=(x - uncond) / sigma)
        elif reuse == "nothing":
            uncond = cond
        else:
            uncond = cond + sigma * kept["difference"] if reuse == "difference" else x - sigma * kept["unconditional"]
        return uncond + (cond - uncond) * args["cond_scale"]

    core = model.clone()
    core.set_model_sampler_post_cfg_function(by_hand)
    patched, report = tiny.guided_with_report(nodes, model, "every_nth", every=2, warm_up=1, reuse=reuse)
    one, other = (tiny.sample(m, noise, sigmas=sigmas) for m in (patched, core))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    totals, rows = tiny.totals(report)
    word = "drop" if reuse == "nothing" else "reuse"
    assert [row["decision"] for row in rows] == ["guide", word] * 3 and totals["branches"] == {"cond": 6, "uncond": 3}


@pytest.mark.parametrize("of", ["output", "velocity"])
def test_reported_similarity_is_the_cosine_of_eps_or_velocity(nodes, built, of):
    model, shape = built
    noise, sigmas, measured = tiny.noise_for(shape, [1, 2]), tiny.schedule(model), []
    is_noise = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.EPS)

    def measure(args):
        sigma = args["sigma"].double().view(-1, *[1] * (noise.ndim - 1))
        pair = []
        for name in ("cond", "uncond"):
            denoised = args[f"{name}_denoised"].double()
            d = (args["input"].double() - denoised) / sigma
            norm = (1 + sigma**2).sqrt()  # in variance-preserving coordinates v is alpha eps - sigma x0
            pair.append(d / norm - sigma / norm * denoised if of == "velocity" and is_noise else d)
        measured.append(torch.nn.functional.cosine_similarity(*(part.flatten(1) for part in pair), dim=1))
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(measure)
    tiny.sample(watched, noise, sigmas=sigmas)
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **GUIDED, measure=of)
    tiny.sample(patched, noise, sigmas=sigmas)
    told = torch.tensor([row["values"]["similarity"] for row in tiny.totals(report)[1]], dtype=torch.float64)
    torch.testing.assert_close(told, torch.stack(measured).mean(1), rtol=1e-6, atol=1e-6)


def test_patience_and_threshold_follow_the_similarities(nodes, built):
    """With a threshold between two measured values, guidance ends where the reported curve first stays above it."""
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1]), tiny.schedule(model, 8)
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **GUIDED)
    tiny.sample(patched, noise, sigmas=sigmas)
    curve = [row["values"]["similarity"] for row in tiny.totals(report)[1]]
    threshold = sorted(curve)[2]  # at least the highest six reach it, so two in a row do
    agreed = [i for i, value in enumerate(curve) if value >= threshold]
    last = next(i for i in agreed if i - 1 in agreed)
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", **DROPS | {"threshold": threshold, "patience": 2})
    result = tiny.sample(patched, noise, sigmas=sigmas)
    assert_same(result, tiny.sample(tiny.unguided_from(nodes, model, sigmas, last + 1), noise, sigmas=sigmas))
    rows = tiny.totals(report)[1]
    assert [row["decision"] for row in rows] == ["guide"] * (last + 1) + ["drop"] * (7 - last)
    assert "reached" in rows[-1]["reason"] and f"{curve[last]:.4f}" in rows[-1]["reason"]


@pytest.mark.parametrize("rule", SKIPS)
def test_a_high_noise_pass_does_not_leak_into_a_low_noise_pass(nodes, built, rule):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1]), tiny.schedule(model, 8)
    knobs = {"adaptive": DROPS | {"max_guided": 2}}.get(rule, {})
    high, low = sigmas[:5], sigmas[4:]
    once = tiny.sample(tiny.guided(nodes, model, rule, **knobs), noise, sigmas=low, latent=noise)
    used = tiny.guided(nodes, model, rule, **knobs)
    tiny.sample(used, noise, sigmas=high)
    assert_same(tiny.sample(used, noise, sigmas=low, latent=noise), once)


class Stopped(Exception):
    pass


def test_an_interrupted_run_leaves_nothing_behind(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    patched, report = tiny.guided_with_report(nodes, model, "every_nth")
    patched = tiny.guided(nodes, patched, "apg")
    expected = tiny.sample(patched, noise)
    options = {key: dict(value) if isinstance(value, dict) else value for key, value in patched.model_options.items()}

    def stop(step, *_):
        if step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        tiny.sample(patched, noise, callback=stop)
    assert (
        patched.model_options.keys() == options.keys()
        and patched.model_options["transformer_options"] == options["transformer_options"]
    )
    assert "distillery_runs" not in patched.model_options["transformer_options"]
    assert not report.runs[-1]["complete"]
    assert_same(tiny.sample(patched, noise), expected)


def test_the_users_cancel_ends_a_run_and_the_next_is_whole(nodes, flow):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    patched = tiny.guided(nodes, model, "adaptive", **DROPS, max_guided=2)
    expected = tiny.sample(patched, noise)

    def cancel(step, *_):
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(patched, noise, callback=cancel)
    assert_same(tiny.sample(patched, noise), expected)


@pytest.mark.parametrize("method, knobs, said", [
    ("adaptive", {"min_guided": 5, "max_guided": 3}, "max_guided is 3 and min_guided 5"),
    ("interval", {"start": 0.6, "end": 0.6}, "interval is empty"),
    ("interval", {"unit": "sigma", "start": 0.2, "end": 0.6}, "start is 0.2 and end is 0.6: the interval is empty"),
    ("interval", {"start": 0.0, "end": 2.0}, "end is 2"),
    ("every_nth", {"every": 0}, "every is 0"),
    ("adaptive", {"threshold": -1.0}, "threshold is -1"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(nodes, flow, method, knobs, said):
    with pytest.raises(ValueError, match=said):
        tiny.guided(nodes, flow[0], method, **knobs)


def test_a_scale_below_1_is_refused_before_anything_runs(nodes, flow):
    model, shape = flow
    patched, report = tiny.guided_with_report(nodes, model, "adaptive")
    with pytest.raises(ValueError, match=r"cfg is 0\.5: Adaptive Guidance skips"):
        tiny.sample(patched, tiny.noise_for(shape, [1]), cfg=0.5)
    assert not any(run["totals"].get("evaluations") for run in report.runs)


@pytest.mark.parametrize("rule", SKIPS)
def test_a_solver_of_several_steps_at_once_is_refused_by_name(nodes, flow, rule):
    model, shape = flow
    patched, solver = tiny.guided(nodes, model, rule), tiny.sampler(nodes, "paradigms")
    with pytest.raises(
        ValueError, match=f"sampler runs several steps at once, which {SKIPS[rule].title} cannot follow.*Use another"
    ):
        tiny.sample(patched, tiny.noise_for(shape, [1]), sampler=solver)
    neutral = tiny.guided(nodes, model, rule, **SKIPS[rule].neutral)
    assert_same(*(tiny.sample(m, tiny.noise_for(shape, [1]), sampler=solver) for m in (neutral, model)))
