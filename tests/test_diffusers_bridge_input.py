"""What the bridge takes: configs as published, lists of levels, what comes from the MODEL, and what is refused."""

import json
import math
import re
import sys

import pytest
import torch
from comfyui_distillery.samplers.diffusers_bridge import REFUSED, USABLE, Facts, prepare

from .bridging import HIGH, PUBLISHED, SD, SD3, SHIFTED, ZSNR, Recorded, agree, both
from .problems import EPS, randn

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    ("name", "facts", "grid", "values", "expected"),
    [
        ("LCMScheduler", SD, "timesteps", "999, 749, 499, 249", [float(SD.table[t]) for t in (999, 749, 499, 249)]),
        ("DDPMScheduler", SD, "timesteps", "[999; 749; 499; 249]", [float(SD.table[t]) for t in (999, 749, 499, 249)]),
        ("EulerDiscreteScheduler", SD, "timesteps", "900 600", [float(SD.table[t]) for t in (900, 600)]),
        ("EulerDiscreteScheduler", SD, "sigmas", "14, 5, 1", [14, 5, 1]),
        ("SCMScheduler", SD3, "timesteps", "1.5, 1.0", [math.sin(t) / (math.sin(t) + math.cos(t)) for t in (1.5, 1.0)]),
        ("FlowMatchEulerDiscreteScheduler", SD3, "even", "", [1.0, 0.9, 0.75, 0.5]),
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
    "nan shift": ('{"shift": NaN}', SD3, {"choice": "FlowMatchEulerDiscreteScheduler"}, "shift is nan: it must be finite"),
    "no shift": ('{"shift": 0}', SD3, {"choice": "FlowMatchEulerDiscreteScheduler"}, "shift is 0.*a number above 0"),
    "shift in words": (
        '{"use_dynamic_shifting": true, "base_shift": "a"}', SD3, {"choice": "FlowMatchEulerDiscreteScheduler", "tokens": 64}, "base_shift is 'a'",
    ),
    "one length": (
        '{"use_dynamic_shifting": true, "base_image_seq_len": 4096}', SD3, {"choice": "FlowMatchEulerDiscreteScheduler", "tokens": 64},
        "max_image_seq_len is 4096: it must be above base_image_seq_len, 4096",
    ),
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
