"""Solvers of distilled models against diffusers' schedulers, step by step with the same noise."""

import pytest
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.schedules import SCHEDULES
from comfyui_distillery.samplers.solvers import SOLVERS

from .problems import EPS, FLOW, assert_close, mixture, number, randn
from .test_solvers import euler

diffusers = pytest.importorskip("diffusers")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = {"eps": "epsilon", "v": "v_prediction"}
every_kind = pytest.mark.parametrize("kind", KINDS)


def table_of(scheduler):
    """The noise levels of a scheduler's timesteps, float64. It then computes with the same betas in float64, too."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()


def on_table(scheduler, kind):
    return Path(kind, log_sigmas=table_of(scheduler).log())


def noise_like(x, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator, dtype=dtype).to(x)


def ve_sigmas(scheduler, path):
    """The levels of the timesteps that a scheduler has set, and 0: exact, where ours come through float32."""
    return torch.cat([path.log_sigmas[scheduler.timesteps].exp(), number([0.0])])


def theirs_on_ve(scheduler, path, model, x, sigmas, **options):
    """States before each step and after the last, of a scheduler that works in VP coordinates. The last is left in these."""
    scheduler.config.prediction_type = KINDS[path.prediction]
    generator, states = torch.Generator().manual_seed(0), []
    for t, sigma in zip(scheduler.timesteps, sigmas):
        states.append(x)
        output = path.output(model(x, sigma), x, sigma)
        after = scheduler.step(output, t, x / torch.hypot(sigma, number(1.0)), generator=generator, **options).prev_sample
        x = after * torch.hypot(sigmas[len(states)], number(1.0))
    return torch.stack([*states, after])


def ours_on(path, key, model, x, sigmas, dtype=torch.float64, **knobs):
    states = []
    noise = noise_like(x, dtype=dtype)
    last = SOLVERS[key](model, x, sigmas, path=path, noise_sampler=noise, callback=lambda s: states.append(s["x"]), **knobs)
    return torch.stack([*states, last])


def started(scheduler_class, n, kind, **config):
    scheduler = scheduler_class(**BETAS, prediction_type=KINDS[kind], **config)
    scheduler.set_timesteps(n)
    path = on_table(scheduler, kind)
    model, sigmas = mixture(path), ve_sigmas(scheduler, path)
    return scheduler, path, model, model.start(sigmas[0]), sigmas


# TCD


@pytest.mark.parametrize("n", [1, 2, 4, 7])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.55, 1.0])
@every_kind
def test_tcd_is_diffusers_step_by_step_to_timestep_0(kind, gamma, n):
    scheduler, path, model, x, sigmas = started(diffusers.TCDScheduler, n, kind)
    theirs = theirs_on_ve(scheduler, path, model, x, sigmas, eta=gamma)
    assert_close(ours_on(path, "tcd", model, x, sigmas, gamma=gamma, end="timestep_0"), theirs, 1e-9)
    clean = ours_on(path, "tcd", model, x, sigmas, gamma=gamma)
    assert_close(clean[:-1], theirs[:-1], 1e-9)
    assert_close(clean[-1], model(theirs[-2], sigmas[-2]), 1e-9)
    scheduled = SCHEDULES["lcm_timesteps"](n, 0.029, 14.6, path=path, table=path.log_sigmas.exp())
    assert_close(ours_on(path, "tcd", model, x, scheduled, gamma=gamma), clean, 1e-5)  # through float32, as in ComfyUI


def test_tcd_of_many_steps_is_diffusers_down_to_the_last_timesteps():
    """Where whole timesteps matter most: jumps that stay where they are, and the last step from timestep 0 itself."""
    scheduler, path, model, x, _ = started(diffusers.TCDScheduler, 4, "eps")
    scheduler.set_timesteps(timesteps=[999, 400, 20, 3, 2, 1, 0])
    sigmas = ve_sigmas(scheduler, path)
    theirs = theirs_on_ve(scheduler, path, model, x, sigmas, eta=0.3)
    assert_close(ours_on(path, "tcd", model, x, sigmas, gamma=0.3, end="timestep_0"), theirs, 1e-9)


# LCM, DMD2, one step


def with_boundary(model, path, scaling=10.0):
    """LCM's c_skip and c_out, which make of any model a consistency function at timestep 0."""

    def scaled(x, sigma):
        timestep = (path.log_sigmas - sigma.flatten()[0].log()).abs().argmin() * scaling
        skip, out = 0.25 / (timestep**2 + 0.25), timestep / (timestep**2 + 0.25) ** 0.5
        return out * model(x, sigma) + skip * x / torch.hypot(sigma.flatten()[0], number(1.0))

    return scaled


@pytest.mark.parametrize("timesteps", [1, 2, 4, 8, [999, 749, 499, 249], [999, 500, 3]], ids=str)
@pytest.mark.parametrize("key", ["ping_pong", "scm"])
@every_kind
def test_ping_pong_is_diffusers_lcm_step_by_step(kind, key, timesteps):
    """And without LCM's boundary scaling within 1e-5, but for timesteps so low that no model visits them."""
    steps = timesteps if isinstance(timesteps, int) else 1
    scheduler, path, model, x, sigmas = started(diffusers.LCMScheduler, steps, kind)
    if steps != timesteps:
        scheduler.set_timesteps(timesteps=timesteps)
        sigmas = ve_sigmas(scheduler, path)
    theirs = theirs_on_ve(scheduler, path, model, x, sigmas)
    assert_close(ours_on(path, key, with_boundary(model, path), x, sigmas), theirs, 1e-9)
    plain = (ours_on(path, key, model, x, sigmas) - theirs).abs().max()
    assert plain < 1e-5 if scheduler.timesteps[-1] > 50 else plain > 1e-4


@pytest.mark.parametrize("timestep", [399, 800, 999])
@every_kind
def test_one_step_from_unit_noise_is_diffusers_at_that_timestep(kind, timestep):
    """One-step DMD2 and Hyper-SD: the pipeline starts from unit noise in VP coordinates, core from noise of sigma."""
    scheduler, path, model, *_ = started(diffusers.LCMScheduler, 1, kind)
    scheduler.set_timesteps(timesteps=[timestep])
    sigmas, noise = ve_sigmas(scheduler, path), randn(3, 2, 3, 2)
    theirs = theirs_on_ve(scheduler, path, model, noise * torch.hypot(sigmas[0], number(1.0)), sigmas)
    assert_close(ours_on(path, "ping_pong", model, noise * sigmas[0], sigmas, start="unit_noise")[-1], theirs[-1], 1e-5)
    if timestep == 399:
        assert (ours_on(path, "ping_pong", model, noise * sigmas[0], sigmas)[-1] - theirs[-1]).abs().max() > 0.05


# Flow


def theirs_on_flow(scheduler, model, x):
    """States of a scheduler that works in flow coordinates, float32 inside."""
    generator, states = torch.Generator().manual_seed(0), [x]
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.double()):
        x = states[-1]
        states.append(scheduler.step((x - model(x, sigma)) / sigma, t, x, generator=generator).prev_sample)
    return torch.stack(states)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("key, scheduler, options", [
    ("ping_pong", "FlowMatchLCMScheduler", {}), ("scm", "FlowMatchLCMScheduler", {}),
    ("ping_pong", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),  # LTX Video's distilled models
    ("pcm", "FlowMatchEulerDiscreteScheduler", {}),
])  # fmt: skip
def test_on_flow_they_are_diffusers_flow_match_schedulers(key, scheduler, options, n, shift, monkeypatch):
    scheduler = getattr(diffusers, scheduler)(shift=shift, **options)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).tolist())
    model = mixture(FLOW)
    x = model.start(number(1.0))
    noise = noise_like(x, dtype=torch.float32)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise(0, 0).float())  # the second takes no generator
    theirs = theirs_on_flow(scheduler, model, x)
    table = torch.arange(1, 1001, dtype=torch.float64) / 1000
    table = shift * table / (1 + (shift - 1) * table)
    sigmas = SCHEDULES["trailing"](n, 0.001, 1.0, path=FLOW, table=table)
    assert_close(ours_on(FLOW, key, model, x, sigmas, torch.float32), theirs, 1e-5)


# SCM


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_scm_on_flow_is_diffusers_in_trigflow(sigma_data, n):
    """Its states are sigma_data times cos(t) x0 + sin(t) n; on flow the same point lies at 1 / (cos + sin) of that."""
    scheduler = diffusers.SCMScheduler(sigma_data=sigma_data)
    scheduler.set_timesteps(n, intermediate_timesteps=1.3 if n == 2 else None, max_timesteps=1.57079)
    model = mixture(FLOW)
    sigmas = SCHEDULES["scm_timesteps"](n, 0.003, 1.0, path=FLOW).double()
    x = start = model.start(sigmas[0])
    generator, states = torch.Generator().manual_seed(0), [x]
    for i, t in enumerate(scheduler.timesteps.double()[:-1]):
        cos, sin = t.cos(), t.sin()
        denoised = model(x, sin / (sin + cos))
        trig = x * (cos + sin)
        output = (cos * trig - denoised) / sin
        trig = scheduler.step(sigma_data * output, t, sigma_data * trig, generator=generator).prev_sample / sigma_data
        after = scheduler.timesteps[i + 1].double()
        states.append(x := trig / (after.cos() + after.sin()))
    assert_close(ours_on(FLOW, "scm", model, start, sigmas, torch.float32), torch.stack(states), 2e-5)


# PCM


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("key, knobs", [("pcm", {}), ("tcd", {"gamma": 0.0}), ("ping_pong", {"fresh": 0.0})])
@every_kind
def test_without_noise_they_are_diffusers_ddim_with_trailing_timesteps(kind, key, knobs, n):
    """So is Euler, core's among them (tests/host): a schedule is all that DDIM trailing needs."""
    scheduler, path, model, x, sigmas = started(
        diffusers.DDIMScheduler, n, kind, timestep_spacing="trailing", clip_sample=False
    )
    theirs = theirs_on_ve(scheduler, path, model, x, sigmas)
    assert_close(ours_on(path, key, model, x, sigmas, **knobs), theirs, 1e-9)
    assert_close(euler(model, x, sigmas), theirs[-1], 1e-9)
    trailing = SCHEDULES["trailing"](n, 0.029, 14.6, path=path, table=path.log_sigmas.exp())
    assert_close(ours_on(path, key, model, x, trailing, **knobs)[-1], theirs[-1], 1e-5)


@pytest.mark.parametrize("n", [2, 4])
def test_pcm_at_one_phase_a_step_is_diffusers_tcd_without_noise(n):
    scheduler, path, model, x, sigmas = started(diffusers.TCDScheduler, n, "eps")
    theirs = theirs_on_ve(scheduler, path, model, x, sigmas, eta=0.0)
    assert_close(ours_on(path, "pcm", model, x, sigmas, phases=n)[:-1], theirs[:-1], 1e-9)


# ADD


@pytest.mark.parametrize("n", [1, 2, 4])
def test_add_needs_no_solver_of_its_own(n):
    """SD-Turbo's and SDXL-Turbo's pipelines: trailing timesteps and ancestral Euler, which core has, and pc_langevin's predictor."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    model, sigmas = mixture(EPS), scheduler.sigmas.double()
    x = start = model.start(sigmas[0])
    generator = torch.Generator().manual_seed(0)
    for t, sigma in zip(scheduler.timesteps, sigmas):
        scheduler.scale_model_input(x, t)
        x = scheduler.step((x - model(x, sigma)) / sigma, t, x, generator=generator).prev_sample
    table = table_of(diffusers.DDIMScheduler(**BETAS))
    levels = SCHEDULES["trailing"](n, 0.029, 14.6, path=EPS, table=table)
    ours = ours_on(EPS, "pc_langevin", model, start, levels, predictor="ancestral", corrector_steps=0)
    assert_close(ours[-1], x.double(), 1e-5)
