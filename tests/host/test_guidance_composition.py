"""Every pair of guidance rules on one MODEL, in both orders, and rules beside core's own guidance nodes and caches."""

from itertools import combinations, product

import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from tiny import assert_same

STEPS = 4
ALL = {**SKIPS, **RULES}
AT_WORK = {  # settings with which a rule shows in four steps
    "adaptive": {"threshold": 1.01, "min_guided": 1, "max_guided": 2, "recheck": 0, "instead": "nothing"},
    "apg": {"eta": 0.5, "norm_threshold": 2.0, "momentum": -0.5},
    "zero_star": {"zero_steps": 0},
}
SKIP_PAIRS = [pair for pair in product(SKIPS, SKIPS) if pair[0] != pair[1]]
SHAPE_PAIRS = [pair for pair in product(RULES, RULES) if pair[0] != pair[1]]
MIXED = [*product(SKIPS, RULES), *product(RULES, SKIPS)]


def at_work(nodes, model, *rules):
    for rule in rules:
        model = tiny.guided(nodes, model, rule, **AT_WORK.get(rule, {}))
    return model


def neutral(nodes, model, rule):
    return tiny.guided(nodes, model, rule, **ALL[rule].neutral)


@pytest.fixture(scope="module")
def runs(nodes, built):
    return runs_of(nodes, built)


@pytest.fixture(scope="module")
def flow_runs(nodes, flow):
    return runs_of(nodes, flow)


def runs_of(nodes, built):
    """(model, run): run(model) samples from the same noise; run.alone[rule], the result of each rule at work alone."""
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)

    def run(patched):
        return tiny.sample(patched, noise, sigmas=sigmas)

    run.alone = {rule: run(at_work(nodes, model, rule)) for rule in ALL}
    run.plain = run(model)
    run.sigmas = sigmas
    return model, run


@pytest.mark.parametrize("rule", ALL)
def test_a_rule_at_work_shows(runs, rule):
    _, run = runs
    assert run.alone[rule].isfinite().all() and not torch.equal(run.alone[rule], run.plain)


@pytest.mark.parametrize("pair", SKIP_PAIRS + SHAPE_PAIRS + MIXED, ids="-".join)
def test_each_pair(nodes, flow_runs, pair):
    """Together they run and show; with one of them neutral the result is the other's alone, bit for bit, in either order."""
    model, run = flow_runs
    together = run(at_work(nodes, model, *pair))
    assert together.isfinite().all()
    assert not any(torch.equal(together, alone) for alone in (run.plain, run.alone[pair[0]])) or set(pair) <= set(SKIPS)
    assert_same(run(neutral(nodes, at_work(nodes, model, pair[0]), pair[1])), run.alone[pair[0]])
    assert_same(run(at_work(nodes, neutral(nodes, model, pair[0]), pair[1])), run.alone[pair[1]])


@pytest.mark.parametrize("pair", product(SKIPS, RULES), ids="-".join)
def test_skipping_and_shaping_do_not_care_who_comes_first(nodes, runs, pair):
    model, run = runs
    assert_same(run(at_work(nodes, model, *pair)), run(at_work(nodes, model, *reversed(pair))))


@pytest.mark.parametrize("rule", RULES)
def test_where_the_negative_is_dropped_shaping_is_core_at_cfg_1(nodes, runs, rule):
    model, run = runs
    core = tiny.unguided_from(nodes, at_work(nodes, model, rule), run.sigmas, 2)
    assert_same(run(at_work(nodes, model, rule, "adaptive")), run(core))


@pytest.mark.parametrize("pair", combinations(SKIPS, 2), ids="-".join)
def test_two_that_skip_evaluate_where_both_want_it(nodes, runs, pair):
    model, run = runs
    guided = []
    for rules in ((pair[0],), (pair[1],), pair):
        report = None
        patched = model
        for rule in rules:
            patched, report = tiny.guided_with_report(nodes, patched, rule, **AT_WORK.get(rule, {}))
        run(patched)
        guided.append({row["step"] for row in tiny.totals(report)[1] if "uncond" in row["evaluations"]})
    assert guided[2] <= guided[0] | guided[1]
    assert len(guided[2]) < STEPS


# Beside core's nodes


def core_nodes(nodes, model):
    """name: the model with this node of core's, those that run on it."""
    some = {
        "RescaleCFG": lambda: nodes["RescaleCFG"]().patch(model, 0.7)[0],  # in the one slot for a CFG function
        "TCFG": lambda: tiny.run(nodes["TCFG"], model=model)[0],  # a pre-CFG function
        "CFGZeroStar": lambda: tiny.run(nodes["CFGZeroStar"], model=model)[0],  # a post-CFG function
        "EasyCache": lambda: tiny.run(
            nodes["EasyCache"], model=model, reuse_threshold=0.5, start_percent=0.0, end_percent=0.95, verbose=False
        )[0],
        "LazyCache": lambda: tiny.run(
            nodes["LazyCache"], model=model, reuse_threshold=0.5, start_percent=0.0, end_percent=0.95, verbose=False
        )[0],
    }
    kind = type(model.model.diffusion_model).__name__
    if kind == "UNetModel":
        some["PerturbedAttentionGuidance"] = lambda: tiny.run(nodes["PerturbedAttentionGuidance"], model=model, scale=2.0)[0]
    if kind == "Flux":
        some["SkipLayerGuidanceDiT"] = lambda: tiny.run(
            nodes["SkipLayerGuidanceDiT"], model=model, double_layers="0", single_layers="", scale=2.0, start_percent=0.0,
            end_percent=1.0, rescaling_scale=0.0,
        )[0]  # fmt: skip
    return {name: make() for name, make in some.items()}


def test_neutral_rules_leave_cores_nodes_alone_bit_for_bit(nodes, runs):
    model, run = runs
    for name, patched in core_nodes(nodes, model).items():
        expected = run(patched)
        assert not torch.equal(expected, run.plain), name
        for rule in ALL:
            assert_same(run(neutral(nodes, patched, rule)), expected)


def test_a_rule_that_skips_nothing_leaves_cores_nodes_alone_bit_for_bit(nodes, runs):
    model, run = runs
    for patched in core_nodes(nodes, model).values():
        working = tiny.guided(nodes, patched, "adaptive", threshold=1.01, max_guided=1000)
        assert_same(run(working), run(patched))


def test_rules_beside_cores_nodes(nodes, runs):
    """Each runs, repeats itself and shows, if core's caches leave it steps to show in."""
    model, run = runs
    for name, patched in core_nodes(nodes, model).items():
        before = run(patched)
        for rule in ALL:
            working = at_work(nodes, patched, rule)
            result = run(working)
            assert_same(run(working), result)
            assert not torch.equal(result, before) or name == "LazyCache"


@pytest.mark.parametrize("name", ["RescaleCFG", "TCFG", "CFGZeroStar"])
def test_dropping_beside_cores_guidance_is_cfg_1_in_it(nodes, runs, name):
    """Within rounding: core's functions divide and multiply the conditional prediction by its own spread or length."""
    model, run = runs
    patched = core_nodes(nodes, model)[name]
    core = tiny.unguided_from(nodes, patched, run.sigmas, 2)
    torch.testing.assert_close(run(at_work(nodes, patched, "adaptive")), run(core), rtol=1e-3, atol=1e-3)
