"""The bridge against the loop of diffusers' own pipelines, for every scheduler that it offers, on a denoiser that is known.

Both record what the denoiser is asked, so every model call of every step is compared, and the latent at the end.
"""

import json

import pytest
import torch
from comfyui_distillery.samplers.diffusers_bridge import USABLE, prepare

from .bridging import HIGH, PUBLISHED, SD, SD3, ZSNR, Recorded, agree, both, facts_for
from .problems import assert_close, gaussian, randn

pytest.importorskip("diffusers")

V_ZSNR = {**PUBLISHED, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
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
    "ddim-zsnr": ("DDIMScheduler", ZSNR, V_ZSNR),
    "euler-zsnr": ("EulerDiscreteScheduler", ZSNR, V_ZSNR),
    "unipc-zsnr": ("UniPCMultistepScheduler", ZSNR, V_ZSNR),
    "ddim-of-zsnr-model": ("DDIMScheduler", ZSNR, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
}  # fmt: skip


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
    sigmas, x = bridge.sigmas(), gaussian(facts.path).start(bridge.sigmas()[0].double())
    whole, high, low = Recorded(facts), Recorded(facts), Recorded(facts)
    bridge.sample(whole, x, sigmas, {"seed": 1})
    end = bridge.sample(high, x, sigmas[:4], {"seed": 1})
    bridge.sample(low, end, sigmas[3:], {"seed": 1})
    assert_close(end, whole.asked[len(high.asked)][0], 1e-6)
    assert [sigma for _, sigma in high.asked + low.asked] == [sigma for _, sigma in whole.asked]


def test_a_run_leaves_nothing_behind():
    bridge, _ = prepare("", SD, 6, choice="UniPCMultistepScheduler")
    x, sigmas = randn(2, 2, 3, 2), bridge.sigmas()
    first, again = (bridge.sample(Recorded(SD), x, sigmas, {"seed": 1}) for _ in range(2))
    assert torch.equal(first, again) and bridge.made.step_index is None
