"""Our SAMPLER, SIGMAS and NOISE through the real CFGGuider and ModelPatcher, on eps, flow and video models."""

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.solvers import SOLVERS

# Samplers


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_repeats_itself_and_keeps_items_apart(nodes, built, name):
    model, shape = built
    sampler = tiny.sampler(nodes, name)
    noise = tiny.noise_for(shape, [1, 2])
    both = tiny.sample(model, noise, sampler=sampler, seed=5)
    assert both.shape == noise.shape and both.isfinite().all()
    assert torch.equal(both, tiny.sample(model, noise, sampler=sampler, seed=5))
    alone = tiny.sample(model, noise[1:], sampler=sampler, seed=6)  # item i draws from seed + i
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("order", "core"), [(1, "sample_euler"), (2, "sample_ipndm"), (4, "sample_ipndm")])
@pytest.mark.parametrize("name", ["ghvb", "heavy_ball", "nesterov"])
def test_whole_orders_are_core_euler_and_ipndm(nodes, built, name, order, core):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    options = {"max_order": order} if order > 1 else {}
    core = comfy.samplers.KSAMPLER(getattr(comfy.k_diffusion.sampling, core), options)
    expected = tiny.sample(model, noise, sampler=core, steps=6)
    got = tiny.sample(model, noise, sampler=tiny.sampler(nodes, name, order=float(order)), steps=6)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_lambda_ddim_at_zero_is_core_euler(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    got = tiny.sample(model, noise, sampler=tiny.sampler(nodes, "lambda_ddim", lambda_c=0.0))
    torch.testing.assert_close(got, tiny.sample(model, noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_inpainting_keeps_what_the_mask_protects(nodes, built, name):
    model, shape = built
    latent = tiny.noise_for(shape, [7])
    mask = torch.zeros(1, 1, *shape[1:])
    mask[..., :4] = 1
    out = tiny.sample(model, tiny.noise_for(shape, [1]), sampler=tiny.sampler(nodes, name), latent=latent, mask=mask)
    torch.testing.assert_close(out[..., 4:], latent[..., 4:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out[..., :4], latent[..., :4], atol=1e-2)


def test_rising_sigmas_are_refused_before_any_evaluation(nodes, flow):
    model, shape = flow
    with pytest.raises(ValueError, match=r"sigmas\[0\] is 0.2 and sigmas\[1\] is 0.5"):
        tiny.sample(
            model, tiny.noise_for(shape, [1]), sampler=tiny.sampler(nodes, "ghvb"), sigmas=torch.tensor([0.2, 0.5, 0.0])
        )


def test_an_interruption_stops_within_one_step(nodes, flow):
    model, shape = flow
    seen = []

    def stop_at_second(step, denoised, x, total):
        seen.append(step)
        comfy.model_management.interrupt_current_processing(step == 1)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(
            model, tiny.noise_for(shape, [1]), sampler=tiny.sampler(nodes, "ghvb"), steps=9, callback=stop_at_second
        )
    assert seen == [0, 1]


# Schedules and noise


def test_uniform_lambda_is_core_exponential_on_eps(nodes):
    model, _ = tiny.build("eps")
    sigmas = tiny.run(nodes["Distillery_Schedule"], model=model, method={"method": "uniform_lambda"}, steps=12, denoise=1.0)[0]
    core = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "exponential", 12)
    torch.testing.assert_close(sigmas, core, rtol=1e-5, atol=0)


def test_partial_denoise_is_the_end_of_a_longer_schedule(nodes, flow):
    def sigmas(steps, denoise):
        method = {"method": "uniform_lambda"}
        return tiny.run(nodes["Distillery_Schedule"], model=flow[0], method=method, steps=steps, denoise=denoise)[0]

    assert torch.equal(sigmas(5, 0.5), sigmas(10, 1.0)[5:])


def test_item_noise_is_the_noise_of_single_runs(nodes):
    latent = torch.zeros(3, 16, 8, 8)
    batch = tiny.run(nodes["Distillery_NoisePerItem"], seed=7)[0].generate_noise({"samples": latent})
    for i in range(3):
        assert torch.equal(batch[i : i + 1], comfy.sample.prepare_noise(latent[:1], 7 + i))
    picked = tiny.run(nodes["Distillery_NoisePerItem"], seed=7)[0].generate_noise(
        {"samples": latent[:1], "batch_index": [2]}
    )
    assert torch.equal(picked, batch[2:])
