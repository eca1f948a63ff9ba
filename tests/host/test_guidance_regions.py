"""Further prompts that act in one place or at one time, several contrasts in one chain, and scales that change on the way."""

import comfy.hooks
import pytest
import tiny
import torch

METHODS = {"several": {"weight": 2.0}, "perpendicular": {}, "alternating": {"share": 1.0}}


def prompted(nodes, model, method, prompt, **knobs):
    return tiny.run(nodes["Distillery_PromptGuidance"], model=model, prompt=prompt, method={"method": method, **knobs})[0]


def weakened(nodes, model, share, blocks=(0.0, 1.0)):
    inputs = {"weak": "without blocks", "start": blocks[0], "end": blocks[1]}
    return tiny.run(nodes["Distillery_Autoguidance"], model=model, weak=inputs, share=share)[0]


def one_step(model, noise):
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max) * 0.9, 0.0])
    return model.model.process_latent_in(tiny.sample(model, noise, sigmas=sigmas)).double()


def in_the_left_half(nodes, prompt, by):
    if by == "area":
        return nodes["ConditioningSetAreaPercentage"]().append(prompt, 0.5, 1.0, 0.0, 0.0, 1.0)[0]
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    return nodes["ConditioningSetMask"]().append(prompt, mask, "default", 1.0)[0]


@pytest.mark.parametrize("name", ["flow", "eps"])
@pytest.mark.parametrize("method", METHODS)
def test_a_masked_prompt_changes_nothing_outside_its_mask(nodes, name, method):
    model, shape = tiny.build(name)
    noise = tiny.noise_for(shape, [1, 2])
    everywhere = one_step(prompted(nodes, model, method, tiny.prompt(3), **METHODS[method]), noise)
    masked = one_step(prompted(nodes, model, method, in_the_left_half(nodes, tiny.prompt(3), "mask"), **METHODS[method]), noise)
    half = shape[-1] // 2
    if method == "several":  # which adds, place by place
        torch.testing.assert_close(masked[..., :half], everywhere[..., :half], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(masked[..., half:], one_step(model, noise)[..., half:], rtol=1e-3, atol=1e-3)
    elif method == "alternating":  # nothing is evaluated for the rest: the prompt alone, as where guidance ends
        torch.testing.assert_close(masked[..., :half], everywhere[..., :half], rtol=1e-3, atol=1e-3)
        guided = one_step(model, noise)
        unguided = model.model.process_latent_in(
            tiny.sample(model, noise, cfg=1.0, sigmas=torch.tensor([float(model.get_model_object("model_sampling").sigma_max) * 0.9, 0.0]))
        ).double()
        torch.testing.assert_close(masked[..., half:], unguided[..., half:], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(guided[..., half:], unguided[..., half:], rtol=1e-2, atol=1e-2)
    assert masked.isfinite().all() and masked.abs().max() < 2 * max(everywhere.abs().max(), one_step(model, noise).abs().max())


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_out_of_its_time_changes_nothing(nodes, flow, method):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    late = nodes["ConditioningSetTimestepRange"]().set_range(tiny.prompt(3), 0.9, 1.0)[0]
    assert torch.equal(one_step(prompted(nodes, model, method, late, **METHODS[method]), noise), one_step(model, noise))


def test_an_area_of_its_own_is_that_of_a_mask(nodes, flow):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    by_area = one_step(prompted(nodes, model, "several", in_the_left_half(nodes, tiny.prompt(3), "area"), weight=2.0), noise)
    half = shape[-1] // 2
    assert by_area.isfinite().all() and by_area.abs().max() < 20
    assert not torch.equal(by_area[..., :half], one_step(model, noise)[..., :half])


def test_a_second_weaker_model_goes_on_from_the_first(nodes, flow):
    """What is guided away from is 0.5 w1 + 0.5 w2, for shares 1 and then 0.5 of two weaker models."""
    model, shape = flow
    noise = tiny.noise_for(shape, [1, 2])
    first, second = (0.0, 0.5), (0.5, 1.0)
    one, other = (one_step(weakened(nodes, model, 1.0, blocks), noise) for blocks in (first, second))
    both = one_step(weakened(nodes, weakened(nodes, model, 1.0, first), 0.5, second), noise)
    torch.testing.assert_close(both, (one + other) / 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", [0, 1])
def test_what_adds_comes_after_what_replaces_in_either_order(nodes, flow, order):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])

    def several(m):
        return prompted(nodes, m, "several", tiny.prompt(3), weight=2.0)

    def weaker(m):
        return weakened(nodes, m, 1.0)

    links = [several, weaker][:: 1 if order else -1]
    got = one_step(links[1](links[0](model)), noise)
    weak_only = one_step(weaker(model), noise)
    from_plain = one_step(several(model), noise) - one_step(model, noise)  # 2 (other - negative)
    none = one_step(prompted(nodes, model, "alternating", tiny.prompt(2), share=1.0), noise)
    torch.testing.assert_close(none, one_step(model, noise), rtol=1e-4, atol=1e-4)
    weak_is = (weak_only - 4 * cond_of(model, noise)) / -3  # plain CFG at 4: 4 cond - 3 uncond
    negative_is = (one_step(model, noise) - 4 * cond_of(model, noise)) / -3
    expected = weak_only + from_plain + 2 * (negative_is - weak_is)  # 2 (other - weak)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-3)


def cond_of(model, noise):
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max) * 0.9, 0.0])
    return model.model.process_latent_in(tiny.sample(model, noise, cfg=1.0, sigmas=sigmas)).double()


def test_a_replaced_prompt_is_not_evaluated(nodes, flow):
    model, shape = flow
    first = prompted(nodes, model, "perpendicular", tiny.prompt(3))
    patched, report = tiny.run(nodes["Distillery_Autoguidance"], model=first, weak={"weak": "without blocks", "start": 0.0, "end": 1.0}, share=1.0)
    tiny.sample(patched, tiny.noise_for(shape, [1]))
    totals = tiny.totals(report)[0]
    assert totals["branches"] == {"cond": 4, "weak": 4}


def test_a_scale_driven_below_1_is_refused_where_something_skips(nodes, flow):
    model, shape = flow
    patched = tiny.guided(nodes, model, "linear")
    patched = tiny.run(nodes["CFGOverride"], model=patched, cfg=0.5, start_percent=0.5, end_percent=1.0)[0]
    with pytest.raises(ValueError, match="cfg is 0.5: Linear"):
        tiny.sample(patched, tiny.noise_for(shape, [1]))


def test_two_smart_guidances_are_refused(nodes, flow):
    model, _ = flow
    once = tiny.run(nodes["Distillery_SmartGuidance"], model=model, scale=4.0, saving="balanced")[0]
    with pytest.raises(ValueError, match="model already has Smart Guidance"):
        tiny.run(nodes["Distillery_SmartGuidance"], model=once, scale=5.0, saving="balanced")


def test_a_lora_hook_on_the_positive_prompt_is_refused_beside_another_model(nodes, flow):
    model, shape = flow
    weak = tiny.build("flow")[0]
    weak_inputs = {"weak": "another model", "weak_model": weak}
    patched = tiny.run(nodes["Distillery_Autoguidance"], model=model, weak=weak_inputs, share=1.0)[0]
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    positive = [[tensor, options | {"hooks": hooks}] for tensor, options in tiny.prompt(1)]
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(positive, tiny.prompt(2))
    guider.set_cfg(4.0)
    with pytest.raises(ValueError, match="positive has hooks"):
        tiny.sample_with(guider, tiny.noise_for(shape, [1]), tiny.schedule(model))
