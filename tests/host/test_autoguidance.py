"""Guidance away from a weaker model in the real ComfyUI: against core's guider with two models, and networks with blocks removed."""

import comfy.samplers
import node_helpers
import pytest
import tiny
import torch
from comfyui_distillery.nodes.architectures import blocks_of
from test_parallel import control_net
from tiny import DROPS, assert_same

STEPS = 6


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def beside(nodes, model, weak, share=1.0):
    """(model, report) guided away from another MODEL."""
    return tiny.run(
        nodes["Distillery_Autoguidance"], model=model, weak={"weak": "another model", "weak_model": weak}, share=share
    )


def without(nodes, model, start, end, share=1.0):
    return tiny.run(
        nodes["Distillery_Autoguidance"], model=model, weak={"weak": "without blocks", "start": start, "end": end}, share=share
    )


def sample(model, noise, positive=None, negative=None, cfg=4.0):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or tiny.prompt(1), negative or tiny.prompt(2))
    guider.set_cfg(cfg)
    return tiny.sample_with(guider, noise, tiny.schedule(model, STEPS))


def core(nodes, model, weak, noise):
    """Core's guider with two models, the positive prompt for both."""
    guider = tiny.run(
        nodes["DualModelGuider"], model=model, model_negative=weak, positive=tiny.prompt(1), negative=tiny.prompt(1), cfg=4.0
    )[0]
    return tiny.sample_with(guider, noise, tiny.schedule(model, STEPS))


def weights_of(model):
    return [key for key, value in model.model.state_dict().items() if key.endswith("weight") and value.ndim == 2]


def with_lora(model, strength=0.3):
    """As a LoRA does it: the change is laid over the weights when core loads the model."""
    patched = model.clone()
    state, generator = model.model.state_dict(), torch.Generator().manual_seed(9)
    patched.add_patches(
        {name: (strength * 0.1 * torch.randn(state[name].shape, generator=generator),) for name in weights_of(model)}
    )
    return patched


@pytest.fixture(scope="module", params=list(tiny.MODELS))
def pair(request):
    """(model, weak, shape): two models of one kind with different weights."""
    model, shape = tiny.build(request.param)
    return model, with_lora(tiny.build(request.param)[0]), shape


def test_another_model_is_cores_guider_with_two(nodes, pair):
    model, weak, shape = pair
    noise = tiny.noise_for(shape, [1, 2])
    patched, report = beside(nodes, model, weak)
    result = sample(patched, noise)
    assert_same(result, core(nodes, model, weak, noise))
    assert not torch.allclose(result, sample(model, noise), atol=1e-2)
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "weak": STEPS}


def test_the_model_itself_as_the_weak_one_is_no_guidance(nodes, pair):
    model, _, shape = pair
    noise = tiny.noise_for(shape, [1, 2])
    assert_same(sample(beside(nodes, model, model)[0], noise), sample(model, noise, cfg=1.0))


def test_a_share_is_between_the_negative_prompt_and_the_weak_model(nodes, pair):
    model, weak, shape = pair
    noise = tiny.noise_for(shape, [1, 2])
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max) * 0.9, 0.0])
    into = model.model.process_latent_in

    def one_step(model):
        return into(tiny.sample(model, noise, sigmas=sigmas)).double()

    plain, all_weak = one_step(model), one_step(beside(nodes, model, weak)[0])
    patched, report = beside(nodes, model, weak, 0.25)
    close(one_step(patched), 0.75 * plain + 0.25 * all_weak)
    assert tiny.totals(report)[0]["branches"] == {"cond": 1, "uncond": 1, "weak": 1}
    assert_same(one_step(beside(nodes, model, weak, 0.0)[0]), plain)


def test_a_clone_of_the_model_may_be_the_weak_one_whatever_else_is_on_either(nodes, flow):
    """Nodes that leave the weights alone do not matter, nor does a LoRA that both have."""
    model, shape = flow
    lora, noise = with_lora(model), tiny.noise_for(shape, [1])
    expected = sample(lora, noise, cfg=1.0)
    traced = tiny.run(nodes["Distillery_Trace"], model=lora)[0]
    for one, weak in ((lora, traced), (traced, lora), (tiny.guided(nodes, lora, "adaptive"), traced)):
        assert_same(sample(beside(nodes, one, weak)[0], noise), expected)


def test_it_repeats_itself_and_leaves_cfg_1_and_both_models_alone(nodes, pair):
    model, weak, shape = pair
    noise = tiny.noise_for(shape, [1, 2])
    before, weak_before = sample(model, noise), sample(weak, noise)
    patched, report = beside(nodes, model, weak)
    assert_same(sample(patched, noise, cfg=1.0), sample(model, noise, cfg=1.0))
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS}
    assert_same(sample(patched, noise), sample(patched, noise))
    assert_same(sample(model, noise), before)
    assert_same(sample(weak, noise), weak_before)


@pytest.mark.parametrize("through", ["Trace", "adaptive", "apg", "EasyCache", "itself guided"])
def test_a_weak_model_may_come_through_other_nodes(nodes, pair, through):
    """Its guidance and records are of runs of its own: here it only predicts."""
    model, weak, shape = pair
    noise = tiny.noise_for(shape, [1, 2])
    noded = {
        "Trace": lambda: tiny.run(nodes["Distillery_Trace"], model=weak)[0],
        "adaptive": lambda: tiny.guided(nodes, weak, "adaptive"),
        "apg": lambda: tiny.guided(nodes, weak, "apg"),
        "itself guided": lambda: beside(nodes, weak, model)[0],
        "EasyCache": lambda: tiny.run(
            nodes["EasyCache"], model=weak, reuse_threshold=0.0, start_percent=0.0, end_percent=1.0, verbose=False
        )[0],
    }[through]()
    assert_same(sample(beside(nodes, model, noded)[0], noise), sample(beside(nodes, model, weak)[0], noise))


def test_the_weak_model_sees_the_control_net_of_the_positive_prompt(nodes):
    """Two models of the same weights and one ControlNet: no guidance."""
    (model, shape), (weak, _) = tiny.build("eps"), tiny.build("eps")
    noise = tiny.noise_for(shape, [1])
    control = control_net(model)
    control.set_cond_hint(torch.rand(1, 3, 8 * shape[1], 8 * shape[2], generator=torch.Generator().manual_seed(0)), 1.0)
    controlled = node_helpers.conditioning_set_values(tiny.prompt(1), {"control": control})
    expected = sample(model, noise, positive=controlled, cfg=1.0)
    assert not torch.allclose(expected, sample(model, noise, cfg=1.0), atol=1e-2)
    assert_same(sample(beside(nodes, model, weak)[0], noise, positive=controlled), expected)


def test_an_interrupted_run_leaves_nothing_behind(nodes, pair):
    model, weak, shape = pair
    noise = tiny.noise_for(shape, [1])
    patched, _ = without(nodes, beside(nodes, model, weak)[0], 0.0, 1.0, 0.5)
    before, plain = tiny.sample(patched, noise), tiny.sample(model, noise)

    def stop(step, *_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.sample(patched, noise, callback=stop)
    assert weak.model.current_patcher is None
    assert not any("forward" in vars(block.module) for block in blocks_of(model.model.diffusion_model))
    assert_same(tiny.sample(model, noise), plain)
    assert_same(tiny.sample(patched, noise), before)


def test_skipping_saves_the_weak_model_too(nodes, pair):
    model, weak, shape = pair
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model, STEPS)
    patched, report = tiny.guided_with_report(nodes, beside(nodes, model, weak)[0], "adaptive", **DROPS, max_guided=3)
    assert_same(sample(patched, noise), sample(tiny.unguided_from(nodes, beside(nodes, model, weak)[0], sigmas, 3), noise))
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "weak": 3}


# The same model without blocks


BLOCKS = {"flow": ["double_blocks.0"], "eps": ["middle_block.1.transformer_blocks.0"], "video": ["blocks.0"]}


@pytest.mark.parametrize("name", BLOCKS)
def test_without_blocks_is_a_network_that_lacks_them(nodes, name):
    model, shape = tiny.build(name)
    lacking, _ = tiny.build(name)
    names = [block.name for block in blocks_of(model.model.diffusion_model)]
    places = [(names.index(block) + 0.5) / len(names) for block in BLOCKS[name]]
    for block in BLOCKS[name]:
        blocks, _, index = block.rpartition(".")
        del lacking.model.diffusion_model.get_submodule(blocks)[int(index)]
    noise = tiny.noise_for(shape, [1, 2])
    patched, report = without(nodes, model, max(min(places) - 0.01, 0), min(max(places) + 0.01, 1))
    before = sample(model, noise)
    assert_same(sample(patched, noise), core(nodes, model, lacking, noise))
    assert_same(sample(model, noise), before)
    assert tiny.totals(report)[0]["branches"] == {"cond": STEPS, "weak": STEPS}


def test_a_range_between_two_blocks_means_the_nearest(nodes, flow):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    between, nearest = (sample(without(nodes, model, *places)[0], noise) for places in ((0.6, 0.6), (0.7, 0.8)))
    assert_same(between, nearest)


def test_without_blocks_beside_context_windows(nodes):
    model, shape = tiny.build("video")
    lacking, _ = tiny.build("video")
    del lacking.model.diffusion_model.blocks[0]
    noise = tiny.noise_for((shape[0], 5, *shape[2:]), [1])
    windows = {
        "context_length": 3, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False,
        "fuse_method": "pyramid", "dim": 2, "freenoise": False, "causal_window_fix": False,
    }  # fmt: skip
    patched = tiny.run(nodes["ContextWindowsManual"], model=without(nodes, model, 0.0, 1.0)[0], **windows)[0]
    windowed, lacking = (tiny.run(nodes["ContextWindowsManual"], model=m, **windows)[0] for m in (model, lacking))
    close(sample(patched, noise), core(nodes, windowed, lacking, noise))
    with pytest.raises(ValueError, match="samples in context windows, which Autoguidance cannot follow"):
        sample(tiny.run(nodes["ContextWindowsManual"], model=beside(nodes, model, model)[0], **windows)[0], noise)


# Where it cannot be


def test_a_model_of_another_latent_format_is_refused_naming_both(nodes, flow):
    with pytest.raises(
        ValueError, match=r"weak_model works on latents of another kind \(SD15, 4 channels\) than model \(Flux, 16 channels\)"
    ):
        beside(nodes, flow[0], tiny.build("eps")[0])


def test_a_model_on_another_path_is_refused_naming_both(nodes):
    model, _ = tiny.build("eps")
    flowing = nodes["ModelSamplingSD3"]().patch(tiny.build("eps")[0], 3.0)[0]
    with pytest.raises(ValueError, match="weak_model predicts flow and model eps"):
        beside(nodes, model, flowing)


def test_v_prediction_beside_eps_follows_the_same_path(nodes):
    model, shape = tiny.build("eps")
    weak = nodes["ModelSamplingDiscrete"]().patch(tiny.build("eps")[0], "v_prediction", False)[0]
    noise = tiny.noise_for(shape, [1])
    assert_same(sample(beside(nodes, model, weak)[0], noise), core(nodes, model, weak, noise))


def test_one_checkpoint_with_different_loras_is_refused(nodes, flow):
    model, shape = flow
    with pytest.raises(ValueError, match="one checkpoint with different LoRAs"):
        beside(nodes, model, with_lora(model))
    later = beside(nodes, model, model)[0]
    later.add_patches({weights_of(model)[0]: (torch.ones_like(model.model.state_dict()[weights_of(model)[0]]),)})
    with pytest.raises(ValueError, match="one checkpoint with different LoRAs"):
        sample(later, tiny.noise_for(shape, [1]))


def test_an_empty_range_of_blocks_is_refused(nodes, flow):
    with pytest.raises(ValueError, match=r"start is 0\.6 and end is 0\.4"):
        without(nodes, flow[0], 0.6, 0.4)
