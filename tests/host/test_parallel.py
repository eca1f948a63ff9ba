"""Several noise levels in one batch through the real ComfyUI: whatever holds for one level a call must hold for many.

"""

import sys

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.samplers
import node_helpers
import pytest
import tiny
import torch

STEPS = 5
LEVELS = 3  # in one batch


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")


def sample(model, noise, sampler, positive=None, negative=None, mask=None, latent=None, callback=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.prompt(1) if positive is None else positive, tiny.prompt(2) if negative is None else negative)
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    latent = torch.zeros_like(noise) if latent is None else latent
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, mask, callback, disable_pbar=True, seed=5)


def assert_many_levels_at_once(nodes, model, noise, **knobs):
    """One batch of all levels, mixed, gives what core gives for each level by itself; and so the sampler at tolerance 0 is Euler.

    Both matter: at tolerance 0 the first level of a batch alone decides where it ends. Returns that end.
    """
    spread = sys.modules[nodes["Distillery_SamplerParallel"].__module__.rpartition(".")[0] + ".host_batches"].Spread

    def compare(model, x, sigmas, extra_args=None, callback=None, disable=None):
        b, states = len(x), [x * (0.5 + k / 10) for k in range(STEPS)]
        alone = [model(state, sigma.expand(b), **extra_args) for state, sigma in zip(states, sigmas)]
        many = spread(model, b)
        for k in range(STEPS - LEVELS + 1):
            batch, levels = torch.cat(states[k : k + LEVELS]), sigmas[k : k + LEVELS].repeat_interleave(b)
            expected = torch.cat(alone[k : k + LEVELS])
            torch.testing.assert_close(many(batch, levels, **extra_args), expected, rtol=2e-4, atol=2e-4)
        items = torch.arange(b).flip(0) * (STEPS - 1) // max(b - 1, 1)  # each item at a level of its own, the last the noisiest
        batch, expected = (torch.stack([rows[k][i] for i, k in enumerate(items)]) for rows in (states, alone))
        torch.testing.assert_close(many(batch, sigmas[items], **extra_args), expected, rtol=2e-4, atol=2e-4)
        return x

    sample(model, noise, comfy.samplers.KSAMPLER(compare), **knobs)
    parallel = tiny.sampler(nodes, "paradigms", window=4, tolerance=0.0)
    euler = sample(model, noise, comfy.samplers.sampler_object("euler"), **knobs)
    torch.testing.assert_close(sample(model, noise, parallel, **knobs), euler, rtol=2e-4, atol=2e-4)
    return euler


def between(prompt, start, end):
    return node_helpers.conditioning_set_values(prompt, {"start_percent": start, "end_percent": end})


@pytest.mark.parametrize("items", [1, 2])
def test_every_kind_of_model(nodes, built, items):
    model, shape = built
    assert_many_levels_at_once(nodes, model, tiny.noise_for(shape, range(items)))


def test_a_prompt_for_each_item(nodes, eps):
    """Core repeats two prompts over the larger batch: each state of an item must meet its own."""
    model, shape = eps
    each = [[torch.cat([tiny.prompt(1)[0][0], tiny.prompt(3)[0][0]]), {}]]
    noise = tiny.noise_for(shape, [1, 1])
    result = assert_many_levels_at_once(nodes, model, noise, positive=each)
    assert not torch.allclose(result[0], result[1], atol=1e-2)


def test_prompts_that_do_not_fit_the_batch_are_refused(nodes, eps):
    model, shape = eps
    each = [[torch.cat([tiny.prompt(1)[0][0], tiny.prompt(3)[0][0]]), {}]]
    with pytest.raises(ValueError, match="holds 2 items and the latent 3"):
        sample(model, tiny.noise_for(shape, [1, 2, 3]), tiny.sampler(nodes, "paradigms"), positive=each)


def test_prompts_for_part_of_the_run(nodes, eps):
    model, shape = eps
    noise = tiny.noise_for(shape, [1, 2])
    parts = between(tiny.prompt(1), 0.0, 0.4) + between(tiny.prompt(3), 0.4, 1.0)
    result = assert_many_levels_at_once(nodes, model, noise, positive=parts)
    assert not torch.allclose(result, assert_many_levels_at_once(nodes, model, noise), atol=1e-2)


def test_masks_of_regions(nodes, eps):
    model, shape = eps
    left = torch.zeros(1, *shape[1:])
    left[..., :4] = 1
    masks = torch.cat([left, 1 - left])  # one per item
    regions = node_helpers.conditioning_set_values(tiny.prompt(1), {"mask": masks, "mask_strength": 1.0}) + tiny.prompt(3)
    assert_many_levels_at_once(nodes, model, tiny.noise_for(shape, [1, 2]), positive=regions)


@pytest.mark.parametrize("name", ["eps", "flow", "video"])
def test_inpainting_a_batch(nodes, name):
    model, shape = tiny.build(name)
    masks = torch.zeros(2, 1, *shape[1:])
    masks[0, ..., :4], masks[1, ..., 4:] = 1, 1
    assert_many_levels_at_once(nodes, model, tiny.noise_for(shape, [1, 2]), latent=tiny.noise_for(shape, [7, 8]), mask=masks)


def test_a_mask_that_opens_with_the_noise_level(nodes, eps):
    model, shape = eps
    gradual = tiny.run(nodes["DifferentialDiffusion"], model=model)[0]
    mask = torch.linspace(0, 1, shape[-1]).expand(2, 1, *shape[1:])
    assert_many_levels_at_once(nodes, gradual, tiny.noise_for(shape, [1, 2]), latent=tiny.noise_for(shape, [7, 8]), mask=mask)


def control_net(model):
    """A genuine ControlNet for the tiny UNet, filled with seeded noise, its zero convolutions too."""
    options = {key: value for key, value in tiny.SD1.items() if key not in ("out_channels", "transformer_depth_output", "legacy")}
    options |= {"hint_channels": 3, "dtype": torch.float32, "device": "cpu", "operations": comfy.ops.manual_cast}
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(**options)
        generator = torch.Generator().manual_seed(3)
        for parameter in network.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 1) ** 0.5
    return comfy.controlnet.ControlNet(network, load_device=comfy.model_management.get_torch_device())


@pytest.mark.parametrize("pictures", [1, 2])
def test_control_net_for_part_of_the_run(nodes, eps, pictures):
    model, shape = eps
    hint = torch.rand(pictures, 3, 8 * shape[1], 8 * shape[2], generator=torch.Generator().manual_seed(0))
    control = control_net(model)
    control.set_cond_hint(hint, 1.0, (0.0, 0.5))
    noise = tiny.noise_for(shape, [1, 2])
    controlled = node_helpers.conditioning_set_values(tiny.prompt(1), {"control": control, "control_apply_to_uncond": True})
    result = assert_many_levels_at_once(nodes, model, noise, positive=controlled)
    assert not torch.allclose(result, assert_many_levels_at_once(nodes, model, noise), atol=1e-2)


def test_the_report_counts_a_round_as_one_call(nodes, eps):
    model, shape = eps
    watched, report = tiny.run(nodes["Distillery_Trace"], model=model)
    seen = []
    sampler = tiny.sampler(nodes, "paradigms", window=STEPS, tolerance=0.5)
    sample(watched, tiny.noise_for(shape, [1]), sampler, callback=lambda step, *_: seen.append(step))
    totals = report.runs[0]["totals"]
    assert seen == list(range(STEPS)) == [row["step"] for row in report.runs[0]["steps"]]
    assert totals["steps"] == STEPS > totals["calls"] == totals["branches"]["cond"] == totals["branches"]["uncond"]


def test_an_interruption_stops_within_one_round(nodes, eps):
    model, shape = eps
    seen = []

    def stop(step, denoised, x, total):
        seen.append(step)
        comfy.model_management.interrupt_current_processing()

    sampler = tiny.sampler(nodes, "paradigms", window=2, tolerance=0.0)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, tiny.noise_for(shape, [1]), sampler, callback=stop)
    assert seen == [0]
