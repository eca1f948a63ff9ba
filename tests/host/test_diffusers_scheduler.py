"""Diffusers Scheduler in the real ComfyUI: its picture is that of the pipeline's loop around the same network, and of core's samplers."""

import json

import comfy.model_management
import comfy.sample
import pytest
import tiny
import torch
from comfyui_distillery.samplers.noise import RENOISE

diffusers = pytest.importorskip("diffusers")
SD1 = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "clip_sample": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")


def node(nodes, model, scheduler, config=None, steps=5, denoise=1.0, spacing="own", values=None, **more):
    """(SAMPLER, SIGMAS, text)"""
    given = {"spacing": spacing} | ({} if values is None else {"values": values})
    config = config if isinstance(config, str) else "" if config is None else json.dumps(config)
    return tiny.run(
        nodes["Distillery_DiffusersScheduler"], model=model, scheduler=scheduler, config=config, steps=steps, denoise=denoise, spacing=given,
        **more,
    )  # fmt: skip


def sampled(nodes, built, scheduler, config=None, *, seeds=(1,), seed=5, latent=None, callback=None, **more):
    model, shape = built
    sampler, sigmas, _ = node(nodes, model, scheduler, config, **more)
    noise = tiny.noise_for(shape, seeds)
    return tiny.sample(model, noise, sampler=sampler, sigmas=sigmas, latent=latent, seed=seed, callback=callback)


def pipeline(built, name, config, steps, noise, cfg=4.0, seed=5, latent=None, begin=0):
    """StableDiffusionPipeline's loop, or FluxPipeline's, around core's network: ``diffusion_model`` at the scheduler's timesteps."""
    model, _ = built
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    network, flow = model.model.diffusion_model, hasattr(scheduler, "scale_noise")
    generators = [torch.Generator().manual_seed((seed + i) ^ RENOISE) for i in range(len(noise))]
    positive, negative = tiny.prompt(1)[0], tiny.prompt(2)[0]
    timesteps, order = scheduler.timesteps, getattr(scheduler, "order", 1)
    state = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    if latent is not None:
        timesteps = timesteps[begin * order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin * order)
        state = scheduler.scale_noise(latent, timesteps[:1], noise) if flow else scheduler.add_noise(latent, noise, timesteps[:1])

    def answer(x, t, prompt):
        time = (t / 1000 if flow else t).expand(len(x)).float()
        more = {"y": prompt[1]["pooled_output"].expand(len(x), -1)} if flow else {}
        return network(x, time, prompt[0].expand(len(x), -1, -1), **more)

    comfy.model_management.load_models_gpu([model])
    takes = "generator" in scheduler.step.__code__.co_varnames
    with torch.inference_mode():
        for t in timesteps:
            x = state if flow else scheduler.scale_model_input(state, t)
            cond, uncond = answer(x, t, positive), answer(x, t, negative)
            told = uncond + cfg * (cond - uncond)
            state = scheduler.step(told, t, state, return_dict=False, **({"generator": generators} if takes else {}))[0]
    return state


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", "EulerDiscreteScheduler",
             "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler",
             "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"],
)  # fmt: skip
def test_on_an_sd1_network_it_is_the_pipelines_loop(nodes, eps, name):
    config = {key: value for key, value in SD1.items() if key in getattr(diffusers, name).__init__.__wrapped__.__code__.co_varnames}
    if name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"):
        config["timestep_spacing"] = "trailing"  # whole timesteps: core rounds others
    if name == "PNDMScheduler":
        config["skip_prk_steps"] = True
    noise = tiny.noise_for(eps[1], [1, 2])
    expected = pipeline(eps, name, config, 3, noise)
    got = sampled(nodes, eps, "as config says", {"_class_name": name, **config}, seeds=(1, 2), steps=3)
    torch.testing.assert_close(got, eps[0].model.process_latent_out(expected), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchLCMScheduler", {"shift": 1.0}),
    ],
)  # fmt: skip
def test_on_a_flux_network_it_is_the_pipelines_loop(nodes, flow, name, config):
    noise = tiny.noise_for(flow[1], [1, 2])
    expected = pipeline(flow, name, config, 4, noise)
    got = sampled(nodes, flow, name, config, seeds=(1, 2), steps=4)
    torch.testing.assert_close(got, flow[0].model.process_latent_out(expected), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_denoise_is_the_strength_of_the_image_to_image_pipelines(nodes, eps, name):
    model, shape = eps
    config = {**SD1, "timestep_spacing": "trailing"}
    config = {key: value for key, value in config.items() if key in getattr(diffusers, name).__init__.__wrapped__.__code__.co_varnames}
    noise, latent = tiny.noise_for(shape, [1]), tiny.noise_for(shape, [9])
    expected = pipeline(eps, name, config, 6, noise, latent=model.model.process_latent_in(latent), begin=3)
    got = sampled(nodes, eps, name, config, steps=6, denoise=0.5, latent=latent)
    torch.testing.assert_close(got, model.model.process_latent_out(expected), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("denoise", "left"), [(1.0, 5), (0.79, 3), (0.5, 2), (0.2, 1)])
def test_shares_round_as_in_the_pipelines(nodes, eps, flow, denoise, left):
    assert len(node(nodes, eps[0], "DDIMScheduler", denoise=denoise)[1]) == left + 1  # int(steps * strength)
    whole = denoise in (1.0, 0.2)
    assert len(node(nodes, flow[0], "FlowMatchEulerDiscreteScheduler", denoise=denoise)[1]) == left + 1 + (not whole)


@pytest.mark.parametrize(("name", "core"), [("EulerDiscreteScheduler", "euler"), ("DPMSolverMultistepScheduler", "dpmpp_2m")])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_it_is_cores_sampler_on_an_eps_model(nodes, eps, name, core, spacing):
    model, shape = eps
    sampler, sigmas, _ = node(nodes, model, name, {"timestep_spacing": spacing, "steps_offset": 1})
    noise, latent = tiny.noise_for(shape, [1]), tiny.noise_for(shape, [2])
    got = tiny.sample(model, noise, sampler=sampler, sigmas=sigmas, latent=latent)
    top = float(sigmas[0])
    full = spacing == "trailing"  # there core makes sqrt(1 + sigma^2) noise of it, and diffusers, given a picture, sigma noise
    expected = tiny.sample(model, noise * (top / (1 + top**2) ** 0.5 if full else 1), sampler=core, sigmas=sigmas, latent=latent)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_it_is_cores_euler_on_a_flow_model(nodes, flow):
    model, shape = flow
    sampler, sigmas, _ = node(nodes, model, "FlowMatchEulerDiscreteScheduler", spacing="even")
    noise = tiny.noise_for(shape, [1])
    torch.testing.assert_close(
        tiny.sample(model, noise, sampler=sampler, sigmas=sigmas), tiny.sample(model, noise, sampler="euler", sigmas=sigmas), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["TCDScheduler", "DPMSolverSDEScheduler", "SASolverScheduler"])
def test_an_item_does_not_depend_on_its_batch_and_seeds_matter(nodes, eps, name):
    both = sampled(nodes, eps, name, seeds=(1, 2), seed=5, steps=3)
    alone = sampled(nodes, eps, name, seeds=(2,), seed=6, steps=3)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-3)
    assert torch.equal(alone, sampled(nodes, eps, name, seeds=(2,), seed=6, steps=3))
    assert not torch.allclose(alone, sampled(nodes, eps, name, seeds=(2,), seed=7, steps=3), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LCMScheduler"])
def test_split_sigmas_are_the_whole(nodes, eps, name):
    model, shape = eps
    sampler, sigmas, _ = node(nodes, model, name, {"timestep_spacing": "trailing"})
    high, low = tiny.run(nodes["SplitSigmas"], sigmas=sigmas, step=2)
    noise = tiny.noise_for(shape, [1])
    half = tiny.sample(model, noise, sampler=sampler, sigmas=high)
    assert len(high) == 3
    rest = tiny.sample(model, torch.zeros_like(noise), sampler=sampler, sigmas=low, latent=half)
    whole = tiny.sample(model, noise, sampler=sampler, sigmas=sigmas)
    if name == "LCMScheduler":  # it draws the same noise again
        assert rest.isfinite().all()
    else:
        torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_inpainting_keeps_what_the_mask_protects(nodes, eps):
    model, shape = eps
    latent, mask = tiny.noise_for(shape, [7]), torch.zeros(1, 1, *shape[1:])
    mask[..., :4] = 1
    sampler, sigmas, _ = node(nodes, model, "DPMSolverMultistepScheduler")
    out = tiny.sample(model, tiny.noise_for(shape, [1]), sampler=sampler, sigmas=sigmas, latent=latent, mask=mask)
    torch.testing.assert_close(out[..., 4:], latent[..., 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "calls"), [("DDIMScheduler", 5), ("HeunDiscreteScheduler", 9), ("PNDMScheduler", 6)])
def test_progress_counts_steps_and_the_text_evaluations(nodes, eps, name, calls):
    seen = []
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    sampled(nodes, eps, name, config, callback=lambda step, denoised, x, total: seen.append((step, total)))
    assert seen == [(step, 5) for step in range(5)]
    assert f"5 steps, {calls} model evaluations" in node(nodes, eps[0], name, config)[2]


def test_an_interruption_stops_within_one_step(nodes, eps):
    seen = []

    def stop_at_second(step, denoised, x, total):
        seen.append(step)
        comfy.model_management.interrupt_current_processing(step == 1)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sampled(nodes, eps, "DDIMScheduler", steps=9, callback=stop_at_second)
    assert seen == [0, 1]


def test_through_sampler_custom(nodes, eps):
    model, shape = eps
    sampler, sigmas, _ = node(nodes, model, "DPMSolverMultistepScheduler")
    latent = {"samples": torch.zeros(1, *shape)}
    with torch.inference_mode():
        out = tiny.run(
            nodes["SamplerCustom"], model=model, add_noise=True, noise_seed=5, cfg=4.0, positive=tiny.prompt(1), negative=tiny.prompt(2),
            sampler=sampler, sigmas=sigmas, latent_image=latent,
        )[0]["samples"]  # fmt: skip
    noise = comfy.sample.prepare_noise(latent["samples"], 5)
    torch.testing.assert_close(out, tiny.sample(model, noise, sampler=sampler, sigmas=sigmas))


def test_dynamic_shift_goes_by_the_latent_as_flux_pipeline_does(nodes, flow):
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    latent = {"samples": torch.zeros(1, 16, 64, 96)}
    text = node(nodes, flow[0], "FlowMatchEulerDiscreteScheduler", config, spacing="even", latent=latent)[2]
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (32 * 48 - 256)  # diffusers' calculate_shift
    assert f"mu {mu:.4g}" in text
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(5, sigmas=[1.0, 0.8, 0.6, 0.4, 0.2], mu=mu)
    sigmas = node(nodes, flow[0], "FlowMatchEulerDiscreteScheduler", config, spacing="even", latent=latent)[1]
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="connect latent, or give mu"):
        node(nodes, flow[0], "FlowMatchEulerDiscreteScheduler", config)


def test_of_another_model_it_says_so(nodes, eps, flow):
    sampler, sigmas, _ = node(nodes, flow[0], "FlowMatchEulerDiscreteScheduler")
    with pytest.raises(ValueError, match="made for a model that predicts flow.*used on one that predicts eps"):
        tiny.sample(eps[0], tiny.noise_for(eps[1], [1]), sampler=sampler, sigmas=sigmas)


def test_other_sigmas_are_refused_before_any_evaluation(nodes, eps):
    model, shape = eps
    sampler, _, _ = node(nodes, model, "DDIMScheduler")
    with pytest.raises(ValueError, match="DDIMScheduler with its 5 steps visits .*connect the SIGMAS of the same node"):
        tiny.sample(model, tiny.noise_for(shape, [1]), sampler=sampler, sigmas=tiny.schedule(model))
