"""Solvers of distilled models in the real ComfyUI: diffusers' steps on core's own models, and core's samplers beside both."""

import comfy.k_diffusion.sampling
import comfy.model_sampling
import pytest
import tiny
import torch
from comfyui_distillery.samplers.noise import RENOISE, fixed, item_seeds
from comfyui_distillery.samplers.solvers import SOLVERS
from test_stochastic_samplers import PATHS, like_core

from tests.problems import assert_close, number, randn

diffusers = pytest.importorskip("diffusers")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # SD1's and SDXL's
PUBLISHED = {
    "tcd": ("TCDScheduler", {"gamma": 0.3, "end": "timestep_0"}, {"eta": 0.3}, "lcm_timesteps"),
    "ping_pong": ("LCMScheduler", {}, {}, "lcm_timesteps"),
    "scm": ("LCMScheduler", {}, {}, "lcm_timesteps"),
    "pcm": ("DDIMScheduler", {}, {}, "trailing"),
}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def ve(request):
    model, shape = tiny.build("eps")
    if request.param == "v_prediction":

        class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
            pass

        model = model.clone()
        model.add_object_patch("model_sampling", Sampling(model.model.model_config))
    return request.param, model, shape


def recorded(model, noise, **options):
    states = []
    last = tiny.sample(model, noise, callback=lambda i, denoised, x, n: states.append((x.clone(), denoised.clone())), **options)
    return [x for x, _ in states], [denoised for _, denoised in states], model.model.process_latent_in(last)


@pytest.mark.parametrize("key", PUBLISHED)
def test_on_cores_models_they_are_diffusers_with_a_generator_per_picture(nodes, ve, key):
    """Timesteps from the Schedule node, noise levels from core's table, predictions of core's network under CFG, two pictures."""
    prediction, model, shape = ve
    name, knobs, options, spacing = PUBLISHED[key]
    config = {"clip_sample": False, "timestep_spacing": "trailing"} if key == "pcm" else {}
    scheduler = getattr(diffusers, name)(**BETAS, prediction_type=prediction, **config)
    scheduler.set_timesteps(4)
    (sigmas,) = tiny.run(nodes["Distillery_Schedule"], model=model, method={"method": spacing}, steps=4, denoise=1.0)
    sampler = tiny.sampler(nodes, key, **knobs)
    states, predicted, last = recorded(model, tiny.noise_for(shape, [1, 2]), sampler=sampler, sigmas=sigmas, seed=7)

    assert model.get_model_object("model_sampling").timestep(sigmas[:-1]).tolist() == scheduler.timesteps.tolist()
    if key != "pcm":
        options = options | {"generator": [torch.Generator().manual_seed(seed ^ RENOISE) for seed in item_seeds(7, 2)]}
    for i, (t, x, denoised) in enumerate(zip(scheduler.timesteps, states, predicted)):
        sigma, scale = sigmas[i], (1 + sigmas[i] ** 2).sqrt()
        eps, vp = (x - denoised) / sigma, x / scale
        output = eps if prediction == "epsilon" else (eps - sigma * denoised) / scale
        after = scheduler.step(output, t, vp, **options).prev_sample
        if i < 3:
            reached, expected = states[i + 1], after * (1 + sigmas[i + 1] ** 2).sqrt()
        else:
            reached, expected = last, after
        torch.testing.assert_close(reached, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("s_noise", [1.0, 0.7])
@pytest.mark.parametrize("key", ["ping_pong", "scm"])
@pytest.mark.parametrize("name", PATHS)
def test_with_all_noise_new_they_are_core_lcm(name, key, s_noise):
    model = like_core(name)
    sigmas = number([14.6, 6.0, 2.0, 0.7, 0.0] if name == "eps" else [1.0, 0.8, 0.5, 0.2, 0.0])
    x = model.problem.start(sigmas[0])
    noises = [randn(*x.shape, seed=i) for i in range(3)]
    core = comfy.k_diffusion.sampling.sample_lcm(model, x, sigmas, disable=True, noise_sampler=fixed(noises), s_noise=s_noise)
    ours = SOLVERS[key](model, x, sigmas, path=PATHS[name], noise_sampler=fixed(noises), s_noise=s_noise)
    assert_close(ours, core, 1e-12)


def stepped(scheduler, model, x, timesteps):
    """The end of a run of diffusers' on the eps path, in VE coordinates before the last step."""
    generator = torch.Generator().manual_seed(0)
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double()[timesteps]
    for i, (t, sigma) in enumerate(zip(timesteps, levels)):
        after = scheduler.step(
            (x - model.problem(x, sigma)) / sigma, t, x / (1 + sigma**2).sqrt(), generator=generator
        ).prev_sample
        x = after if i + 1 == len(levels) else after * (1 + levels[i + 1] ** 2).sqrt()
    return x, torch.cat([levels, number([0.0])])


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("scheduler, core", [("LCMScheduler", "sample_lcm"), ("DDIMScheduler", "sample_euler")])
def test_core_lcm_and_euler_are_diffusers_lcm_and_ddim_trailing(scheduler, core, steps):
    """So this pack has no lcm and no ddim of its own. LCM's boundary scaling is below 1e-5 at these timesteps."""
    options = {"timestep_spacing": "trailing", "clip_sample": False} if scheduler == "DDIMScheduler" else {}
    scheduler = getattr(diffusers, scheduler)(**BETAS, **options)
    scheduler.set_timesteps(steps)
    model = like_core("eps")
    x = model.problem.start(number(14.6))
    theirs, sigmas = stepped(scheduler, model, x, scheduler.timesteps)
    generator = torch.Generator().manual_seed(0)
    options = {}
    if core == "sample_lcm":
        options["noise_sampler"] = lambda *_: torch.randn(x.shape, generator=generator, dtype=torch.float64)
    ours = getattr(comfy.k_diffusion.sampling, core)(model, x, sigmas, disable=True, **options)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_core_euler_ancestral_is_diffusers_on_trailing_timesteps(steps):
    """SD-Turbo's and SDXL-Turbo's pipelines, at the levels that the Schedule node gives for trailing."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    model = like_core("eps")
    model.inner_model.inner_model = model.inner_model.model_patcher.model
    x = start = model.problem.start(number(14.6))
    draw = torch.Generator().manual_seed(0)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.double()):
        scheduler.is_scale_input_called = True  # the problem takes x as it is
        x = scheduler.step((x - model.problem(x, sigma)) / sigma, t, x, generator=draw).prev_sample.double()
    again = torch.Generator().manual_seed(0)
    core = comfy.k_diffusion.sampling.sample_euler_ancestral(
        model, start, scheduler.sigmas.double(), disable=True,
        noise_sampler=lambda *_: torch.randn(start.shape, generator=again, dtype=torch.float64),
    )  # fmt: skip
    assert_close(core, x, 1e-5)
