"""The bridge against the loop of diffusers' own pipelines, for every scheduler that it offers, on a denoiser that is known.

Both record what the denoiser is asked, so every model call of every step is compared, and the latent at the end.
"""

import json
import math
import re
import sys

import pytest
import torch
from comfyui_distillery.samplers import noise as noises
from comfyui_distillery.samplers.diffusers_bridge import REFUSED, USABLE, Facts, prepare

from .problems import EPS, FLOW, assert_close, gaussian, randn

diffusers = pytest.importorskip("diffusers")

KEPT = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
SD = Facts(EPS, ((1 - KEPT) / KEPT).sqrt(), float(((1 - KEPT[-1]) / KEPT[-1]).sqrt()))  # Stable Diffusion 1's noise levels
HIGH = Facts(EPS, None, 1e9)  # any level
SHIFTED = 3.0
RISING = torch.arange(1, 1001, dtype=torch.float64) / 1000
SD3 = Facts(FLOW, SHIFTED * RISING / (1 + (SHIFTED - 1) * RISING), 1.0)
ON_FLOW = ("flow", "trigflow", "crash")
PUBLISHED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CASES = {  # beside each scheduler's defaults; what pipelines publish, and what changes levels, coordinates, calls or noise
    "ddim-trailing": ("DDIMScheduler", SD, {**PUBLISHED, "timestep_spacing": "trailing", "set_alpha_to_one": False}),
    "ddim-v": ("DDIMScheduler", SD, {"prediction_type": "v_prediction"}),
    "ddim-x0": ("DDIMScheduler", SD, {"prediction_type": "sample"}),
    "ddpm-v": ("DDPMScheduler", SD, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    "pndm-sd1": ("PNDMScheduler", SD, {**PUBLISHED, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    "pndm-v": ("PNDMScheduler", SD, {"skip_prk_steps": True, "prediction_type": "v_prediction"}),
    "euler-sdxl": ("EulerDiscreteScheduler", SD, {**PUBLISHED, "timestep_spacing": "leading", "steps_offset": 1}),
    "euler-trailing": ("EulerDiscreteScheduler", SD, {"timestep_spacing": "trailing"}),
    "euler-karras": ("EulerDiscreteScheduler", SD, {"use_karras_sigmas": True}),
    "euler-v": ("EulerDiscreteScheduler", SD, {"prediction_type": "v_prediction", "use_exponential_sigmas": True}),
    "heun-karras": ("HeunDiscreteScheduler", SD, {"use_karras_sigmas": True}),
    "heun-v": ("HeunDiscreteScheduler", SD, {"prediction_type": "v_prediction"}),
    "kdpm2-v": ("KDPM2DiscreteScheduler", SD, {"prediction_type": "v_prediction"}),
    "sde-karras": ("DPMSolverSDEScheduler", SD, {"use_karras_sigmas": True}),
    "dpm-karras": ("DPMSolverMultistepScheduler", SD, {"use_karras_sigmas": True}),
    "dpm-sde": ("DPMSolverMultistepScheduler", SD, {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"}),
    "dpm-3": ("DPMSolverMultistepScheduler", SD, {"solver_order": 3, "prediction_type": "v_prediction"}),
    "dpm-flow": ("DPMSolverMultistepScheduler", SD3, {"flow_shift": 5.0, "use_flow_sigmas": True}),
    "singlestep-3": ("DPMSolverSinglestepScheduler", SD, {"solver_order": 3}),
    "unipc-flow": ("UniPCMultistepScheduler", SD3, {"flow_shift": 3.0}),
    "unipc-v": ("UniPCMultistepScheduler", SD, {"prediction_type": "v_prediction"}),
    "deis-flow": ("DEISMultistepScheduler", SD3, {}),
    "sa-flow": ("SASolverScheduler", SD3, {}),
    "edm-v": ("EDMEulerScheduler", HIGH, {"prediction_type": "v_prediction", "sigma_max": 40.0}),
    "flow-1": ("FlowMatchEulerDiscreteScheduler", SD3, {"shift": 1.0}),
    "flow-stochastic": ("FlowMatchEulerDiscreteScheduler", SD3, {"stochastic_sampling": True}),
    "flow-terminal": ("FlowMatchEulerDiscreteScheduler", SD3, {"shift_terminal": 0.1}),
}  # fmt: skip


def zero_snr():
    """The noise levels of core's models with a zero terminal SNR (v, zsnr), from the same betas."""
    root = KEPT.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = (root**2).index_fill(0, torch.tensor(999), 4.8973451890853435e-08)
    return Facts(EPS, ((1 - kept) / kept).sqrt(), float(((1 - kept[-1]) / kept[-1]).sqrt()))


ZSNR = zero_snr()
V_ZSNR = {**PUBLISHED, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
CASES |= {
    "ddim-zsnr": ("DDIMScheduler", ZSNR, V_ZSNR),
    "euler-zsnr": ("EulerDiscreteScheduler", ZSNR, V_ZSNR),
    "unipc-zsnr": ("UniPCMultistepScheduler", ZSNR, V_ZSNR),
    "ddim-of-zsnr-model": ("DDIMScheduler", ZSNR, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
}


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


@pytest.mark.parametrize("name", USABLE)
def test_every_scheduler_is_the_pipelines_loop_call_by_call(name):
    agree(*both(name, facts_for(name), {}, 8))


@pytest.mark.parametrize("case", CASES)
def test_settings_are_the_pipelines_loop_call_by_call(case):
    agree(*both(*CASES[case], 7))


@pytest.mark.parametrize(("name", "eta"), [("DDIMScheduler", 0.5), ("DDIMScheduler", 1.0), ("TCDScheduler", 0.0), ("TCDScheduler", 1.0)])
def test_eta_is_the_pipelines(name, eta):
    agree(*both(name, SD, {}, 6, eta=eta))


UNMIXED = {"SCMScheduler", "IPNDMScheduler", "LTXEulerAncestralRFScheduler", "PNDMScheduler"}  # without add_noise; PNDM: see below


@pytest.mark.parametrize("name", [name for name in USABLE if name not in UNMIXED])
def test_from_the_middle_it_is_the_image_to_image_loop(name):
    facts = facts_for(name)
    agree(*both(name, facts, {}, 8, begin=3, latent=randn(2, 2, 3, 2, seed=5)))


@pytest.mark.parametrize("name", ["LTXEulerAncestralRFScheduler", "IPNDMScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("begin", [0, 20])
def test_from_anywhere_it_follows_the_exact_ode(name, begin):
    facts = facts_for(name)
    config = {"LTXEulerAncestralRFScheduler": {"eta": 0.0}, "PNDMScheduler": {"skip_prk_steps": True}}.get(name, {})
    bridge, _ = prepare(json.dumps({"_class_name": name, **config}), facts, 60)
    sigmas, denoiser = bridge.sigmas()[begin:50].double(), gaussian(facts.path)
    x = denoiser.start(sigmas[0])
    got = bridge.sample(lambda x, sigma: denoiser(x, sigma), x, sigmas)
    assert_close(got, denoiser.exact(x, sigmas[0], sigmas[-1]), 0.05 if name in ("LTXEulerAncestralRFScheduler", "DDIMScheduler") else 0.01)


@pytest.mark.parametrize("name", ["DDIMScheduler", "LCMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "SCMScheduler"])
def test_halves_are_the_whole(name):
    facts = facts_for(name)
    bridge, _ = prepare("", facts, 6, choice=name)
    sigmas, denoiser = bridge.sigmas(), gaussian(facts.path)
    whole, half = Recorded(facts), Recorded(facts)
    bridge.sample(whole, denoiser.start(sigmas[0].double()), sigmas, {"seed": 1})
    end = bridge.sample(half, denoiser.start(sigmas[0].double()), sigmas[:4], {"seed": 1})
    following = next(x for x, sigma in whole.asked if sigma == pytest.approx(float(sigmas[3]), rel=1e-6) and len(half.asked) < 99)
    if name != "HeunDiscreteScheduler":  # its first call at that level is still the corrector's
        assert_close(end, following, 1e-6)
    rest = Recorded(facts)
    bridge.sample(rest, end, sigmas[3:], {"seed": 1})
    assert len(half.asked) + len(rest.asked) == len(whole.asked)


def facts_of(path, betas):
    kept = torch.cumprod(1 - betas, 0)
    return Facts(path, ((1 - kept) / kept).sqrt(), float(((1 - kept[-1]) / kept[-1]).sqrt()))


@pytest.mark.parametrize(
    ("name", "facts", "grid", "values", "expected"),
    [
        ("LCMScheduler", SD, "timesteps", "999, 749, 499, 249", [float(SD.table[t]) for t in (999, 749, 499, 249)]),
        ("DDPMScheduler", SD, "timesteps", "[999; 749; 499; 249]", [float(SD.table[t]) for t in (999, 749, 499, 249)]),
        ("EulerDiscreteScheduler", SD, "timesteps", "900 600", [float(SD.table[t]) for t in (900, 600)]),
        ("EulerDiscreteScheduler", SD, "sigmas", "14, 5, 1", [14, 5, 1]),
        ("SCMScheduler", SD3, "timesteps", "1.5, 1.0", [math.sin(t) / (math.sin(t) + math.cos(t)) for t in (1.5, 1.0)]),
        ("FlowMatchEulerDiscreteScheduler", SD3, "even", "", [shift(t) for t in (1, 0.75, 0.5, 0.25)] if (shift := lambda t: 3 * t / (1 + 2 * t)) else 0),
        ("FlowMatchEulerDiscreteScheduler", SD3, "sigmas", "1, 0.5", [1.0, 0.75]),
        ("FlowMatchLCMScheduler", SD3, "sigmas", "1, 0.5", [1.0, 0.75]),
        ("LTXEulerAncestralRFScheduler", SD3, "sigmas", "1, 0.5", [1.0, 0.5]),
        ("MiniMaxH3Scheduler", SD3, "sigmas", "1, 0.5", [1.0, 0.5]),
        ("UniPCMultistepScheduler", SD3, "sigmas", "0.9, 0.5", [2.7 / 2.8, 0.75]),
    ],
)  # fmt: skip
def test_lists_of_timesteps_and_sigmas(name, facts, grid, values, expected):
    bridge, text = prepare("", facts, 4, choice=name, grid=grid, values=values)
    assert bridge.sigmas().tolist() == pytest.approx([*expected, 0], rel=2e-5)
    assert f"{len(expected)} steps" in text


PUBLISHED_FILES = {  # scheduler_config.json as it is in these repositories, and a MODEL of that family
    "stable-diffusion-v1-5": (SD, {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
    }),
    "stable-diffusion-xl-base-1.0": (SD, {
        "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading",
        "trained_betas": None, "use_karras_sigmas": False,
    }),
    "stable-video-diffusion": (Facts(EPS, None, 700.0), {
        "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
        "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False, "sigma_max": 700.0,
        "sigma_min": 0.002, "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "timestep_type": "continuous",
        "trained_betas": None, "use_karras_sigmas": True,
    }),
    "playground-v2.5": (Facts(EPS, None, 80.0), {
        "_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "dynamic_thresholding_ratio": 0.995, "euler_at_final": False,
        "final_sigmas_type": "zero", "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0,
        "sample_max_value": 1.0, "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "solver_order": 2, "solver_type": "midpoint",
        "thresholding": False,
    }),
    "stable-diffusion-3-medium": (SD3, {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0.dev0", "num_train_timesteps": 1000, "shift": 3.0,
    }),
    "wan2.1-t2v": (SD3, {
        "_class_name": "UniPCMultistepScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "disable_corrector": [],
        "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero", "flow_shift": 3.0, "lower_order_final": True, "num_train_timesteps": 1000,
        "predict_x0": True, "prediction_type": "flow_prediction", "rescale_betas_zero_snr": False, "sample_max_value": 1.0, "solver_order": 2,
        "solver_p": None, "solver_type": "bh2", "steps_offset": 0, "thresholding": False, "timestep_spacing": "linspace", "trained_betas": None,
        "use_beta_sigmas": False, "use_exponential_sigmas": False, "use_flow_sigmas": True, "use_karras_sigmas": False,
    }),
}  # fmt: skip


@pytest.mark.parametrize("repository", PUBLISHED_FILES)
def test_published_configs_are_taken_as_they_are(repository):
    facts, config = PUBLISHED_FILES[repository]
    agree(*both(config["_class_name"], facts, config, 6))


def test_what_config_does_not_say_comes_from_the_model():
    bridge, text = prepare("", SD, 10, choice="DDIMScheduler")
    theirs = diffusers.DDIMScheduler(**PUBLISHED).alphas_cumprod
    torch.testing.assert_close(bridge.made.alphas_cumprod, theirs, rtol=1e-4, atol=0)
    assert "as model has it: trained_betas" in text and bridge.made.config.clip_sample is False
    bridge, text = prepare("", SD3, 10, choice="FlowMatchEulerDiscreteScheduler")
    assert bridge.made.config.shift == SHIFTED and "shift 3.0" in text
    bridge, _ = prepare("", SD3, 10, choice="DPMSolverMultistepScheduler")
    assert bridge.made.config.use_flow_sigmas and bridge.made.config.flow_shift == SHIFTED


def test_a_choice_goes_before_the_configs_class_and_ignores_its_other_settings():
    bridge, text = prepare(json.dumps(PUBLISHED_FILES["stable-diffusion-v1-5"][1]), SD, 10, choice="DPMSolverMultistepScheduler")
    assert bridge.name == "DPMSolverMultistepScheduler" and bridge.made.config.steps_offset == 1
    assert "Settings of other schedulers, ignored: set_alpha_to_one, skip_prk_steps, clip_sample." in text


@pytest.mark.parametrize(("name", "draws"), [("DDIMScheduler", False), ("DDPMScheduler", True), ("LCMScheduler", True), ("SASolverScheduler", True)])
def test_the_text_says_whether_noise_is_drawn(name, draws):
    assert ("yes, item i" in prepare("", SD, 5, choice=name)[1]) == draws
    if name == "DDIMScheduler":
        assert "yes, item i" in prepare("", SD, 5, choice=name, eta=0.5)[1]


def test_every_scheduler_of_diffusers_is_offered_or_refused_with_a_reason():
    import diffusers.schedulers as all_of_them

    known = {name for name in dir(all_of_them) if name.endswith("Scheduler") and not name.startswith("Flax")}
    assert known - {"ScoreSdeVpScheduler", "KarrasVeScheduler"} <= {*USABLE, *REFUSED}
    for name, why in REFUSED.items():
        with pytest.raises(ValueError, match=re.escape(f"scheduler {name} cannot drive a MODEL: {why}")):
            prepare("", SD, 4, choice=name)


BAD = {  # config, facts, arguments; what the message says
    "no json": ("{betas}", SD, {}, "config is no JSON"),
    "a list": ("[1, 2]", SD, {}, "config is a list"),
    "no class": ('{"beta_start": 0.1}', SD, {}, "names no _class_name"),
    "empty": ("", SD, {}, "names no _class_name"),
    "a class of none": ('{"_class_name": "os.system"}', SD, {}, "'os.system' is none that this node knows"),
    "a class that is no name": ('{"_class_name": ["DDIMScheduler"]}', SD, {}, "is none that this node knows"),
    "not a scheduler": ('{"_class_name": "StableDiffusionPipeline"}', SD, {}, "none that this node knows"),
    "unknown setting": ('{"_class_name": "DDIMScheduler", "beta_begin": 1}', SD, {}, "beta_begin is a setting of no scheduler"),
    "wrong setting": ('{"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}', SD, {}, "refuses its settings: cubic"),
    "wrong type": ('{"_class_name": "DDIMScheduler", "beta_start": "low"}', SD, {}, "DDIMScheduler refuses its settings"),
    "too many": ('{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000000000}', SD, {}, "num_train_timesteps is 1000000000"),
    "huge order": ('{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1000000000}', SD, {}, "solver_order is 1000000000"),
    "fraction": ('{"_class_name": "DDIMScheduler", "num_train_timesteps": 99.5}', SD, {}, "a whole number from 1"),
    "learned variance": ('{"_class_name": "DDPMScheduler", "variance_type": "learned_range"}', SD, {}, "predicts no variance"),
    "sizes": ('{"_class_name": "FlowMatchLCMScheduler", "scale_factors": [0.5]}', SD3, {}, "changes the size"),
    "backwards": ('{"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": true}', SD3, {}, "from the picture to the noise"),
    "other betas": ('{"_class_name": "DDIMScheduler", "beta_start": 0.0001}', SD, {}, "config has sigma .* and model"),
    "other zsnr": (json.dumps({"_class_name": "DDIMScheduler", **PUBLISHED}), ZSNR, {}, "at the last, 14.615 and 4518"),
    "other count": (
        '{"_class_name": "DDIMScheduler", "beta_start": 0.0001, "num_train_timesteps": 500}', SD, {}, "config has 500 timesteps.*trained on 1000",
    ),
    "flow on eps": ("", SD, {"choice": "FlowMatchEulerDiscreteScheduler"}, "is for flow models, and model predicts eps"),
    "eps on flow": ("", SD3, {"choice": "DDIMScheduler"}, "for eps, v and EDM models, and model is a flow"),
    "use_flow_sigmas on eps": ('{"use_flow_sigmas": true}', SD, {"choice": "UniPCMultistepScheduler"}, "set use_flow_sigmas to false"),
    "too noisy": ("", SD, {"choice": "EDMEulerScheduler"}, "begins at sigma 80, and the noisiest level that model knows is 14.61"),
    "pure noise": ("", SD, {"choice": "SCMScheduler"}, "SCMScheduler begins at sigma inf"),
    "too many steps": ("", SD, {"choice": "DDIMScheduler", "steps": 1001}, "DDIMScheduler cannot space its steps so.*1001"),
    "lcm's steps": ("", SD, {"choice": "LCMScheduler", "steps": 60}, "cannot space its steps so.*60"),
    "one step of unclip": ("", HIGH, {"choice": "UnCLIPScheduler", "steps": 1}, "cannot space its steps so"),
    "offset": ('{"steps_offset": 400}', SD, {"choice": "DDIMScheduler"}, "would begin at timestep 1150, and its last is 999"),
    "prediction": ('{"prediction_type": "sample"}', SD, {"choice": "PNDMScheduler"}, "PNDMScheduler fails with this config"),
    "eta": ("", SD, {"choice": "EulerDiscreteScheduler", "eta": 0.5}, "eta is 0.5, and EulerDiscreteScheduler takes none"),
    "mu": ("", SD3, {"choice": "FlowMatchEulerDiscreteScheduler", "mu": 1.0}, "mu is 1, and .* shifts nothing by it"),
    "no list": ("", SD, {"choice": "DDIMScheduler", "grid": "timesteps", "values": "999"}, "takes no list of timesteps"),
    "no sigmas": ("", SD, {"choice": "DDIMScheduler", "grid": "sigmas", "values": "9"}, "takes no list of sigmas"),
    "even on eps": ("", SD, {"choice": "EulerDiscreteScheduler", "grid": "even"}, "no list of sigmas from 1 down"),
    "words": ("", SD, {"choice": "LCMScheduler", "grid": "timesteps", "values": "many"}, "values is 'many'"),
    "no values": ("", SD, {"choice": "LCMScheduler", "grid": "timesteps"}, "give one timestep a step"),
    "rising": ("", SD, {"choice": "LCMScheduler", "grid": "timesteps", "values": "249, 999"}, "each below the one before"),
    "zero": ("", SD, {"choice": "EulerDiscreteScheduler", "grid": "sigmas", "values": "9, 0"}, "leave the 0 out"),
    "nan": ("", SD, {"choice": "EulerDiscreteScheduler", "grid": "sigmas", "values": "nan, 1"}, "values is 'nan, 1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    config, facts, arguments, message = BAD[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        prepare(config, facts, **{"steps": 4, **arguments})


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"run `pip install diffusers` in ComfyUI's Python environment, or install the pack's extra"):
        prepare("", SD, 4, choice="DDIMScheduler")


def test_the_middle_of_runge_kutta_and_no_step_at_all_are_refused():
    bridge, _ = prepare("", SD, 20, choice="PNDMScheduler")
    with pytest.raises(ValueError, match="set skip_prk_steps to true"):
        bridge.sample(Recorded(SD), randn(1, 2, 3, 2), bridge.sigmas()[5:])
    with pytest.raises(ValueError, match="leaves none"):
        bridge.share(0.01)


def test_a_run_leaves_nothing_behind():
    bridge, _ = prepare("", SD, 6, choice="UniPCMultistepScheduler")
    x, sigmas = randn(2, 2, 3, 2), bridge.sigmas()
    first, again = (bridge.sample(Recorded(SD), x, sigmas, {"seed": 1}) for _ in range(2))
    assert torch.equal(first, again) and bridge.made.step_index is None
