"""The nodes that cache on small genuine models: neutral settings, what is skipped by hand, reports, and what is refused."""

import comfy.model_management
import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.nodes.cache import SITES
from comfyui_distillery.samplers.caching import FORECASTS, POLICIES
from comfyui_distillery.samplers.caching.presets import PRESETS
from tiny import assert_same

STEPS = 10
EVERY_SECOND = {0, 1, 3, 5, 7, 9}  # what interval 2 evaluates of ten steps: the first two, then every second, and the last
NEUTRAL = {name: policy.neutral for name, policy in POLICIES.items() if policy.neutral}
CORE_CACHES = {"reuse_threshold": 0.5, "start_percent": 0.0, "end_percent": 0.95, "verbose": False}


def cached(nodes, model, preset="automatic", strength=0.5):
    """(model, report)"""
    return tiny.run(nodes["Distillery_Cache"], model=model, preset=preset, strength=strength)


def from_parts(nodes, model, policy="interval", forecast="reuse", site="prediction", mask=None, **knobs):
    """(model, report). Each part is its name, or (name, knobs); further knobs are the policy's."""
    parts = {"policy": policy, "forecast": forecast, "site": site}
    named = {name: part if isinstance(part, tuple) else (part, {}) for name, part in parts.items()}
    chosen = {name: {name: key, **settings} for name, (key, settings) in named.items()}
    chosen["policy"] |= knobs
    return tiny.run(nodes["Distillery_CacheParts"], model=model, **chosen, **({} if mask is None else {"mask": mask}))


def every_second(nodes, model, **parts):
    return from_parts(nodes, model, "interval", interval=2, **parts)


def step_mask(nodes, steps, skipped):
    return tiny.run(nodes["Distillery_StepMask"], steps=steps, skipped=skipped)[0]


def by_hand(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler that takes the last slope again where interval 2 skips: a loop that knows nothing of caches."""
    for i in range(len(sigmas) - 1):
        if i in EVERY_SECOND:
            slope = (x - model(x, sigmas[i].expand(len(x)), **extra_args)) / sigmas[i]
        x = x + slope * (sigmas[i + 1] - sigmas[i])
    return x


BY_HAND = comfy.samplers.KSAMPLER(by_hand)


def places(network):
    """Every module of a network with its name, and whether its forward is overridden."""
    return [(name, id(module), "forward" in vars(module)) for name, module in network.named_modules()]


def failing(module, calls):
    """A hook that fails, as another pack's might, after so many calls of the module."""
    left = dict.fromkeys(range(calls))
    return module.register_forward_pre_hook(lambda *_: left.popitem() and None)


def usual(run):
    """A run's rows without what differs between two of them: the clock."""
    return [{**row, "seconds": None} for row in run["steps"]]


def fitting(model):
    """(site, knobs) of each site of this network."""
    network = model.model.diffusion_model
    for name, site in SITES.items():
        for knobs in ({}, {"first": 0}) if name == "blocks" else ({},):
            if site.make(**knobs).fits(network):
                yield name, knobs


@pytest.fixture(scope="module")
def runs(built):
    """(model, run, plain): run(model) samples from the same noise; plain is the result without a cache."""
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])

    def run(patched, **settings):
        return tiny.sample(patched, noise, **{"steps": STEPS, **settings})

    return model, run, run(model)


# Nothing skipped: bit for bit


@pytest.mark.parametrize("preset", PRESETS)
def test_strength_0_is_the_model_alone(nodes, runs, preset):
    model, run, plain = runs
    assert_same(run(cached(nodes, model, preset, 0.0)[0]), plain)


@pytest.mark.parametrize("policy", NEUTRAL)
def test_neutral_settings_are_the_model_alone(nodes, runs, policy):
    model, run, plain = runs
    assert_same(run(from_parts(nodes, model, policy, **NEUTRAL[policy])[0]), plain)


def test_a_cache_that_evaluates_all_is_the_model_alone(nodes, runs):
    """In every site: as the run has too few steps, as all of them are first steps, as the mask says so."""
    model, run, plain = runs
    for site in fitting(model):
        assert_same(run(every_second(nodes, model, site=site, min_steps=STEPS + 1)[0]), plain)
        assert_same(run(every_second(nodes, model, site=site, first_steps=STEPS)[0]), plain)
        assert_same(run(from_parts(nodes, model, "mask", site=site, mask=step_mask(nodes, STEPS, ""))[0]), plain)


@pytest.mark.parametrize("preset", PRESETS)
def test_few_steps_skip_nothing(nodes, runs, preset):
    model, run, _ = runs
    patched, report = cached(nodes, model, preset, 1.0)
    assert_same(run(patched, steps=8), run(model, steps=8))
    assert {row["reason"].rpartition(". ")[2] for row in tiny.totals(report)[1]} == {"run of 8 steps, fewer than 9"}


# What is skipped


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_last_slope_again_is_a_loop_by_hand(nodes, runs, cfg):
    model, run, _ = runs
    patched, report = every_second(nodes, model)
    result = run(patched, cfg=cfg)
    torch.testing.assert_close(result, run(model, cfg=cfg, sampler=BY_HAND), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(result, run(model, cfg=cfg), rtol=1e-3, atol=1e-3)
    assert {row["step"] for row in tiny.totals(report)[1] if row["decision"] == "run"} == EVERY_SECOND


def test_a_mask_skips_what_it_says(nodes, runs):
    model, run, _ = runs
    mask = step_mask(nodes, STEPS, "2, 4 6,8")
    assert [step for step, kept in enumerate(mask) if kept] == sorted(EVERY_SECOND)
    assert_same(run(from_parts(nodes, model, "mask", mask=mask)[0]), run(every_second(nodes, model)[0]))


def test_every_site_and_every_forecast_runs_twice_alike(nodes, runs):
    model, run, plain = runs
    for site in fitting(model):
        for forecast in FORECASTS if site[0] == "prediction" else ("newton",):
            patched, report = every_second(nodes, model, site=site, forecast=forecast)
            result, rows = run(patched), usual(report.runs[0])
            assert_same(run(patched), result)
            assert not torch.equal(result, plain), (site, forecast)
            assert usual(report.runs[0]) == rows


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_skips_and_repeats_itself(nodes, runs, preset):
    model, run, _ = runs
    patched, report = cached(nodes, model, preset, 1.0)
    result = run(patched, steps=14)
    assert_same(run(patched, steps=14), result)
    words = [row["decision"] for row in report.runs[0]["steps"]]
    assert words[:2] == ["run", "run"] and words[-1] == "run" and set(words) <= {"run", "skip"}
    assert ("skip" in words) is not torch.equal(result, run(model, steps=14))
    if PRESETS[preset].policy == "interval":
        assert words.count("skip") == 9


def test_a_batch_is_its_items_one_by_one(nodes, built):
    model, shape = built
    patched, _ = every_second(nodes, model, forecast="newton")
    together = tiny.sample(patched, tiny.noise_for(shape, [1, 2]), steps=STEPS)
    alone = [tiny.sample(patched, tiny.noise_for(shape, [seed]), steps=STEPS) for seed in (1, 2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


# The report


def test_traces_before_and_after_tell_the_same(nodes, runs):
    model, run, _ = runs
    for site in fitting(model):
        outer, before = tiny.run(nodes["Distillery_Trace"], model=model)
        patched, own = every_second(nodes, outer, site=site)
        watched, after = tiny.run(nodes["Distillery_Trace"], model=patched)
        run(watched)
        assert usual(before.runs[0]) == usual(own.runs[0]) == usual(after.runs[0])
        whole = site[0] == "prediction"
        totals, rows = tiny.totals(own)
        assert totals["branches"] == dict.fromkeys(("cond", "uncond"), len(EVERY_SECOND) if whole else STEPS)
        for row in rows:
            ran = row["step"] in EVERY_SECOND
            assert row["decision"] == ("run" if ran else "skip") and row["reason"]
            assert row.get("skipped", {}) == ({} if ran or not whole else {"cond": 1, "uncond": 1})
            assert (row["blocks"].get("skipped", 0) == 0) is ran
        assert len({sum(row["blocks"].values()) for row in rows}) == 1


def test_the_budget_tells_what_it_expects(nodes, flow):
    model, shape = flow
    patched, report = cached(nodes, model, "automatic", 1.0)
    tiny.sample(patched, tiny.noise_for(shape, [1]), steps=20)
    skipped = [row for row in tiny.totals(report)[1] if row["decision"] == "skip"]
    assert skipped and 0 < sum(row["values"]["predicted error"] for row in skipped) < 1.0


def test_a_site_that_is_not_there_becomes_the_whole_prediction(nodes, runs):
    model, run, _ = runs
    unet = type(model.model.diffusion_model).__name__ == "UNetModel"
    for preset in ("first_block", "taylor") if unet else ("deep_branch", "encoder"):
        patched, report = cached(nodes, model, preset, 0.5)
        run(patched)
        title = SITES[PRESETS[preset].site].title
        assert all(row["reason"].startswith(f"{title}: not in this network, so the whole prediction. ") for row in tiny.totals(report)[1])
        site = (PRESETS[preset].site, PRESETS[preset].site_knobs)
        with pytest.raises(ValueError, match="which the network .* does not have: use the whole prediction"):
            every_second(nodes, model, site=site)


# Nothing stays


def test_nothing_is_left_on_the_model(nodes, runs):
    model, run, plain = runs
    network = model.model.diffusion_model
    before = places(network)
    for site in fitting(model):
        patched, _ = every_second(nodes, model, site=site)
        whole = run(patched)

        def stop(step, *_):
            if step == 4:
                comfy.model_management.interrupt_current_processing()

        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(patched, callback=stop)
        assert places(network) == before
        last = [module for module in network.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)][-1]
        hook = failing(last, 3)
        with pytest.raises(KeyError, match="empty"):
            run(patched)
        hook.remove()
        assert places(network) == before
        assert_same(run(patched), whole)
    assert_same(run(model), plain)


# Refused, before any work


def refused(model, run, match, **settings):
    called = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: called.append(1))
    try:
        with pytest.raises(ValueError, match=match):
            run(model, **settings)
    finally:
        hook.remove()
    assert not called


def test_a_second_cache_is_refused(nodes, flow):
    model, _ = flow
    with pytest.raises(ValueError, match="already has a Cache node: .* Keep one of them"):
        every_second(nodes, cached(nodes, model)[0])
    cached(nodes, cached(nodes, model)[0], strength=0.0)  # does nothing


@pytest.mark.parametrize("core", ["EasyCache", "LazyCache"])
def test_cores_caches_are_refused_in_either_order(nodes, runs, core):
    model, run, _ = runs
    with pytest.raises(ValueError, match=f"already has core's {core}: .* Keep one of them"):
        cached(nodes, tiny.run(nodes[core], model=model, **CORE_CACHES)[0])
    after = tiny.run(nodes[core], model=cached(nodes, model)[0], **CORE_CACHES)[0]
    refused(after, run, f"already has core's {core}: .* Keep one of them")
    assert run(tiny.run(nodes[core], model=cached(nodes, model, strength=0.0)[0], **CORE_CACHES)[0]).isfinite().all()


def test_what_does_not_fit_the_run_is_refused(nodes, runs):
    model, run, _ = runs
    mask = step_mask(nodes, 12, "3 5")
    refused(from_parts(nodes, model, "mask", mask=mask)[0], run, "mask has 12 entries and the run 10 steps")
    refused(cached(nodes, model)[0], run, "several steps at once, which a cache cannot follow", sampler=tiny.sampler(nodes, "paradigms"))


def test_bad_settings_are_refused(nodes, flow):
    model, _ = flow
    with pytest.raises(ValueError, match="policy is 'mask' and mask is not connected"):
        from_parts(nodes, model, "mask")
    with pytest.raises(ValueError, match="policy is 'interval' and mask is connected"):
        from_parts(nodes, model, "interval", mask=step_mask(nodes, 4, ""))
    with pytest.raises(ValueError, match="interval"):
        from_parts(nodes, model, "interval", interval=0)
    for text, wrong in (("3 10", "10"), ("-1", "-1"), ("one", "one"), ("2.5", "2.5"), ("1²", "1²")):
        with pytest.raises(ValueError, match=f"skipped has '{wrong}': give numbers from 0 to 9"):
            step_mask(nodes, 10, text)
