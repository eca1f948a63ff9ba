"""What the tests of the diffusers bridge share: models' noise levels, and the loop of diffusers' pipelines on a denoiser that is known."""

import json
import math

import pytest
import torch
from comfyui_distillery.samplers import noise as noises
from comfyui_distillery.samplers.diffusers_bridge import USABLE, Facts, prepare

from .problems import EPS, FLOW, assert_close, gaussian, randn

KEPT = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
SD = Facts(EPS, ((1 - KEPT) / KEPT).sqrt(), float(((1 - KEPT[-1]) / KEPT[-1]).sqrt()))  # Stable Diffusion 1's noise levels
HIGH = Facts(EPS, None, 1e9)  # any level
SHIFTED = 3.0
RISING = torch.arange(1, 1001, dtype=torch.float64) / 1000
SD3 = Facts(FLOW, SHIFTED * RISING / (1 + (SHIFTED - 1) * RISING), 1.0)
ON_FLOW = ("flow", "trigflow", "crash")
PUBLISHED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def zero_snr():
    """The noise levels of core's models with a zero terminal SNR (v, zsnr), from the same betas."""
    root = KEPT.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = (root**2).index_fill(0, torch.tensor(999), 4.8973451890853435e-08)
    return Facts(EPS, ((1 - kept) / kept).sqrt(), float(((1 - kept[-1]) / kept[-1]).sqrt()))


ZSNR = zero_snr()


def facts_for(name):
    state = USABLE[name].state
    return SD3 if state in ON_FLOW else HIGH if state in ("edm", "consistency") or name == "UnCLIPScheduler" else SD


class Recorded:
    """The denoiser, with all that it was asked."""

    def __init__(self, facts):
        self.exact, self.top, self.asked = gaussian(facts.path), facts.sigma_max, []

    def __call__(self, x, sigma, seed=None):
        self.asked.append((x, float(sigma[0])))
        return self.exact(x, sigma)


def level_of(name, scheduler, t, scaled, state):
    """sigma in ComfyUI's coordinates, from what the pipeline hands its network: the timestep, and the scaled input."""
    kind, t = USABLE[name].state, float(t)
    if name == "MiniMaxH3Scheduler":
        return 1 - t
    if kind == "flow":
        return t / 1000
    if kind in ("trigflow", "crash"):
        angle = t if kind == "trigflow" else t * math.pi / 2
        return math.sin(angle) / (math.sin(angle) + math.cos(angle))
    if kind == "edm":
        return math.tan(t * math.pi / 2) if name.startswith("Cosine") else math.exp(4 * t)
    if kind == "consistency":
        return math.exp(t / 250)
    if kind == "ve":  # a scaled input is a VP latent
        return math.sqrt(float((state / scaled).double().square().mean()) - 1)
    if kind == "vp" and scheduler.config.use_flow_sigmas or scheduler.config.get("use_karras_sigmas"):
        return float(scheduler.sigmas[scheduler.step_index or 0])  # its timesteps are rounded
    kept = float(scheduler.alphas_cumprod[int(t)])
    return math.sqrt((1 - kept) / kept) if kept else math.inf


def network(name, scheduler, denoiser, scaled, t, state):
    """What the pipeline's network would answer, by its prediction_type."""
    kind, config = USABLE[name].state, scheduler.config
    sigma = min(level_of(name, scheduler, t, scaled, state), denoiser.top)
    flow = denoiser.exact.path.is_flow
    root = math.hypot(1 - sigma, sigma) if flow else math.hypot(1, sigma)  # of a VP latent to ComfyUI's
    if kind in ("trigflow", "crash"):
        x = state / config.get("sigma_data", 1.0) * root
    elif kind in ("table", "vp") and not flow:
        x = scaled * root
    else:
        x = scaled * root if kind == "ve" else state
    x0 = denoiser(x, torch.full((len(x),), sigma, dtype=x.dtype))
    if kind in ("edm", "consistency"):
        data = config.sigma_data
        skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.hypot(sigma, data)
        if kind == "consistency":
            skip = data**2 / ((sigma - config.sigma_min) ** 2 + data**2)
            out = (sigma - config.sigma_min) * data / math.hypot(sigma, data)
        sign = -1 if kind == "edm" and config.prediction_type == "v_prediction" else 1
        return (x0 - skip * state) / (sign * out)
    noise = (x - (1 - sigma if flow else 1) * x0) / sigma
    if kind in ("trigflow", "crash"):
        return ((1 - sigma) * noise - sigma * x0) / root * config.get("sigma_data", 1.0)
    if flow:
        return (x0 - noise) if name == "MiniMaxH3Scheduler" else noise - x0
    return {"epsilon": noise, "sample": x0, "v_prediction": (noise - sigma * x0) / root}[config.prediction_type]


def pipeline(bridge, steps, denoiser, noise, seeds, begin=0, latent=None, eta=None):
    """The loop of diffusers' text-to-image pipelines; with latent, of the image-to-image ones from step begin."""
    name, scheduler = bridge.name, bridge.made  # ours are copies of it
    scheduler.set_timesteps(steps, **({"intermediate_timesteps": None} if name == "SCMScheduler" and steps != 2 else {}))
    generators = [torch.Generator().manual_seed(seed ^ noises.RENOISE) for seed in seeds]
    if name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler_seed = [seed ^ noises.RENOISE for seed in seeds]
    order = getattr(scheduler, "order", 1)
    timesteps = scheduler.timesteps[begin * order :]
    timesteps = timesteps[:-1] if name == "SCMScheduler" else timesteps
    if latent is None:
        state = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin * order)
        mix = scheduler.add_noise if hasattr(scheduler, "add_noise") else scheduler.scale_noise
        state = mix(latent, noise, timesteps[:1]) if mix.__name__ == "add_noise" else mix(latent, timesteps[:1], noise)
    data = scheduler.config.sigma_data if name == "SCMScheduler" else 1.0
    state, old = state * data, None
    for i, t in enumerate(timesteps):
        scaled = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
        told = network(name, scheduler, denoiser, scaled, t, state)
        extra = {"generator": generators} if "generator" in scheduler.step.__code__.co_varnames else {}
        if eta is not None:
            extra["eta"] = eta
        if name == "CogVideoXDPMScheduler":
            state, old = scheduler.step(told, old, t, timesteps[i - 1] if i else None, state, **extra)
            continue
        if name == "UnCLIPScheduler" and i + 1 < len(timesteps):
            extra["prev_timestep"] = timesteps[i + 1]
        state = scheduler.step(told, t, state, return_dict=False, **extra)[0]
    return state / data


def both(name, facts, config, steps, *, begin=0, latent=None, eta=None, seeds=(3, 4)):
    """(ours, what ours asked, theirs, what theirs asked), from the same noise."""
    bridge, _ = prepare(json.dumps({"_class_name": name, **config}), facts, steps, eta=eta)
    noise = randn(len(seeds), 2, 3, 2, seed=1)
    sigmas = bridge.sigmas()[begin:]
    ours, theirs = Recorded(facts), Recorded(facts)
    empty = torch.zeros_like(noise) if latent is None else latent
    x = (sigmas[0] * noise + (1 - sigmas[0]) * empty) if facts.path.is_flow else sigmas[0] * noise + empty  # as core mixes
    got = bridge.sample(ours, x, sigmas, {"seed": seeds[0]}, noise=noise, latent=empty)
    expected = pipeline(bridge, steps, theirs, noise, seeds, begin, latent, eta)
    return got, ours.asked, expected, theirs.asked


def agree(got, asked, expected, asked_there, tolerance=1e-5):
    assert len(asked) == len(asked_there)
    for (x, sigma), (x_there, sigma_there) in zip(asked, asked_there):
        assert sigma == pytest.approx(sigma_there, rel=1e-4, abs=2e-5)
        assert_close(x, x_there, tolerance)
    assert_close(got, expected, tolerance)
