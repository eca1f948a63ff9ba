"""Skipping rules on batches: every item decides for itself, and only the items that need it are evaluated."""

import comfy.samplers
import node_helpers
import pytest
import tiny
import torch
from comfyui_distillery.nodes.host_prompts import rows_of
from test_parallel import control_net

STEPS = 6
SEEDS = [1, 2]
KNOBS = {"instead": "nothing", "min_guided": 1, "max_guided": 4, "recheck": 0, "patience": 1}


def prompts(seeds):
    """One CONDITIONING with a row for each of these."""
    many = [tiny.prompt(seed)[0] for seed in seeds]
    pooled = torch.cat([extra["pooled_output"] for _, extra in many])
    return [[torch.cat([tensor for tensor, _ in many]), {"pooled_output": pooled}]]


def sample(model, noise, positive=None, negative=None, sampler="euler"):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or tiny.prompt(1), negative or tiny.prompt(2))
    guider.set_cfg(4.0)
    return tiny.sample_with(guider, noise, tiny.schedule(model, STEPS), sampler)


def similarity(nodes, model, noise, conds):
    """Of the first step, for one item."""
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", threshold=1.01, max_guided=1000)
    sample(patched, noise, *conds)
    return tiny.totals(report)[1][0]["values"]["similarity"]


def check_batch(nodes, model, shape, of_items, together, splits=True, entries=1):
    """The batch is its two single runs, of which one drops the negative prompt after the first step.

    of_items: (positive, negative) of each alone; together: of both. entries: how many the negative prompt has.
    """
    noise = tiny.noise_for(shape, SEEDS)
    similar = [similarity(nodes, model, noise[i : i + 1], of_items[i]) for i in range(2)]
    assert similar[0] != similar[1]
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", threshold=sum(similar) / 2, **KNOBS)
    alone, guided = [], []
    for i in range(2):
        alone.append(sample(patched, noise[i : i + 1], *of_items[i]))
        guided.append(tiny.totals(report)[0]["branches"]["uncond"] // entries)
    result = sample(patched, noise, *together)
    torch.testing.assert_close(result, torch.cat(alone), rtol=2e-3, atol=2e-3)
    totals, rows = tiny.totals(report)
    evaluated = [row["evaluations"].get("uncond", 0) / entries for row in rows]
    skipped = [row.get("skipped", {}).get("uncond", 0) for row in rows]
    assert min(guided) == 1 < max(guided), (similar, guided)
    assert totals["branches"]["cond"] == STEPS
    if splits:
        assert evaluated == [1.0] + [0.5] * (max(guided) - 1) + [0] * (STEPS - max(guided))
        assert skipped == [1 - share for share in evaluated]
        assert [row["calls"] for row in rows] == [1] + [2] * (max(guided) - 1) + [1] * (STEPS - max(guided))
    else:
        assert evaluated == [1.0] * max(guided) + [0] * (STEPS - max(guided))


def same_for_all(positive=None, negative=None):
    return [(positive, negative)] * 2, (positive, negative)


def test_items_decide_for_themselves(nodes, built):
    model, shape = built
    check_batch(nodes, model, shape, *same_for_all())


def test_a_prompt_for_each_item(nodes, built):
    model, shape = built
    alone = [(tiny.prompt(3), tiny.prompt(5)), (tiny.prompt(4), tiny.prompt(6))]
    check_batch(nodes, model, shape, alone, (prompts([3, 4]), prompts([5, 6])))


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")


def masked(seed, mask):
    return node_helpers.conditioning_set_values(tiny.prompt(seed), {"mask": mask, "mask_strength": 1.0})


def test_a_mask_for_each_item(nodes, eps):
    model, shape = eps
    left = torch.zeros(1, *shape[1:])
    left[..., :4] = 1
    halves = [left, 1 - left]
    negatives = [masked(2, half) + tiny.prompt(3) for half in halves]
    check_batch(
        nodes,
        model,
        shape,
        [(None, negative) for negative in negatives],
        (None, masked(2, torch.cat(halves)) + tiny.prompt(3)),
        entries=2,
    )


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_control_net_with_one_picture_and_with_one_for_each_item(nodes, eps, pictures):
    """Core lays several pictures along the whole batch: those are evaluated for all items as long as one needs it."""
    model, shape = eps
    hint = torch.rand(pictures, 3, 8 * shape[1], 8 * shape[2], generator=torch.Generator().manual_seed(0))

    def conds(hint):
        control = control_net(model)
        control.set_cond_hint(hint, 0.5)
        extra = {"control": control, "control_apply_to_uncond": True}
        return node_helpers.conditioning_set_values(tiny.prompt(1), extra), tiny.prompt(2)

    check_batch(nodes, model, shape, [conds(hint[:1]), conds(hint[-1:])], conds(hint), splits=pictures == 1)


def test_another_packs_patch_sees_whole_batches(nodes, eps):
    """It may hold something for each item."""
    model, shape = eps
    seen = []

    def attention(q, k, v, extra_options):
        seen.append(len(q))
        return q, k, v

    patched = model.clone()
    patched.set_model_attn1_patch(attention)
    check_batch(nodes, patched, shape, *same_for_all(), splits=False)
    assert set(seen[-10:]) == {2} and set(seen) == {1, 2, 4}


def test_a_wrapped_network_sees_whole_batches(nodes, eps):
    """As another pack's cache, which compares what it is given with what it was given before."""
    model, shape = eps
    patched = model.clone()
    patched.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    check_batch(nodes, patched, shape, *same_for_all(), splits=False)


def test_cores_cache_sees_whole_batches(nodes, eps):
    """EasyCache starts afresh whenever the batch changes its size; this one never reuses."""
    model, shape = eps
    patched = tiny.run(nodes["EasyCache"], model=model, reuse_threshold=0.0, start_percent=0.0, end_percent=1.0, verbose=False)[
        0
    ]
    check_batch(nodes, patched, shape, *same_for_all(), splits=False)


def test_gligen_positions_are_not_taken_apart(eps):
    entry = {"model_conds": {}, "uuid": 0, "gligen": ("position", None, [])}
    assert rows_of([entry], [0], 2, eps[0].model_options) is None


def test_frames_of_one_video_decide_together(nodes, eps):
    """As SVD's, whose frames are the items of a batch: no frame is dropped before all agree."""
    model, shape = eps
    extra_conds = model.model.extra_conds

    def with_frames(**kwargs):
        return extra_conds(**kwargs) | {"num_video_frames": comfy.conds.CONDConstant(2)}

    video, noise = model.clone(), tiny.noise_for(shape, SEEDS)
    video.add_object_patch("extra_conds", with_frames)
    similar = [similarity(nodes, model, noise[i : i + 1], ()) for i in range(2)]
    knobs = {"threshold": sum(similar) / 2, **KNOBS}
    for one, guided in ((model, {0.5}), (video, {1})):
        patched, report = tiny.guided_with_report(nodes, one, "adaptive", **knobs)
        sample(patched, noise)
        rows = tiny.totals(report)[1]
        assert {row["evaluations"]["uncond"] for row in rows[1:2]} == guided


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "dpmpp_2m_sde"])
def test_items_decide_for_themselves_on_other_samplers(nodes, flow, sampler):
    model, shape = flow
    noise = tiny.noise_for(shape, SEEDS)
    similar = [similarity(nodes, model, noise[i : i + 1], ()) for i in range(2)]
    patched, report = tiny.guided_with_report(nodes, model, "adaptive", threshold=sum(similar) / 2, **KNOBS)
    result = sample(patched, noise, sampler=sampler)
    assert any(row["evaluations"].get("uncond", 0) % 1 for row in tiny.totals(report)[1])
    first = 0 if similar[0] > similar[1] else 1
    if sampler != "dpmpp_2m_sde":  # whose noise is of the whole batch
        alone = sample(patched, noise[first : first + 1], sampler=sampler)
        torch.testing.assert_close(result[first : first + 1], alone, rtol=2e-3, atol=2e-3)


def test_what_items_reuse_is_their_own(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, SEEDS)
    similar = [similarity(nodes, model, noise[i : i + 1], ()) for i in range(2)]
    patched = tiny.guided(nodes, model, "adaptive", threshold=sum(similar) / 2, **KNOBS | {"instead": "difference"})
    alone = torch.cat([sample(patched, noise[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(sample(patched, noise), alone, rtol=2e-3, atol=2e-3)
