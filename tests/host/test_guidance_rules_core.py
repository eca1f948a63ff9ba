"""Shaping rules against core's nodes, where core has them: on random predictions, through the functions that core's nodes hang in."""

import pytest
import tiny
import torch
from comfy_extras.nodes_cfg import CFGZeroStar, optimized_scale
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_tcfg import TCFG
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.moment import Moment
from comfyui_distillery.samplers.path import Path

SCALE = 6.0


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")[0]


def sampled(shape, seed, prediction="eps"):
    """(cond, uncond, at) in float32, the levels those of the prediction's range."""
    generator = torch.Generator().manual_seed(seed)
    cond, uncond, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    sigma = torch.linspace(0.3, 0.9, shape[0]) if prediction == "flow" else torch.linspace(0.5, 10, shape[0])
    x = cond + sigma.view(-1, *[1] * (len(shape) - 1)) * noise
    return cond, uncond, Moment(x, sigma, 3, 10, Path(prediction))


def plain(cond, uncond, scale):
    return uncond + (cond - uncond) * scale


def core_rescale(model, cond, uncond, at, phi):
    function = RescaleCFG().patch(model, phi)[0].model_options["sampler_cfg_function"]
    return at.x - function(
        {"cond": at.x - cond, "uncond": at.x - uncond, "cond_scale": SCALE, "sigma": at.sigma, "input": at.x}
    )


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_rescale_on_velocity_is_core_rescale_cfg_on_eps_models(eps, prediction, phi):
    cond, uncond, at = sampled((3, 4, 8, 8), 0, prediction)
    got = RULES["rescale"](cond, uncond, SCALE, at=at, phi=phi)
    torch.testing.assert_close(got, core_rescale(eps, cond, uncond, at, phi), rtol=1e-4, atol=2e-5)


def test_core_rescale_cfg_takes_a_flow_for_v_and_ours_restores_the_spread_of_its_velocity(eps):
    cond, uncond, at = sampled((3, 4, 8, 8), 4, "flow")

    def spread(denoised):
        return at.d(denoised).std((1, 2, 3))

    core, ours = core_rescale(eps, cond, uncond, at, 1.0), RULES["rescale"](cond, uncond, SCALE, at=at, phi=1.0)
    torch.testing.assert_close(spread(ours), spread(cond), rtol=1e-4, atol=1e-4)
    assert ((spread(core) / spread(cond) - 1).abs() > 0.05).all()


@pytest.mark.parametrize("prediction", ["eps", "flow"])
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 16, 3, 8, 8), (2, 1, 500)], ids=str)
def test_tcfg_is_core_tcfg(eps, shape, prediction):
    cond, uncond, at = sampled(shape, 1, prediction)
    (function,) = TCFG.execute(eps).args[0].model_options["sampler_pre_cfg_function"]
    given, damped = function({"input": at.x, "conds_out": [cond, uncond], "conds": [[], []]})
    got = RULES["tcfg"](cond, uncond, SCALE, at=at)
    torch.testing.assert_close(got, plain(given, damped, SCALE), rtol=1e-4, atol=1e-2)  # values up to 30, through a float32 SVD


@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_core_zero_star_lacks_a_term_that_the_published_formula_has(eps, prediction):
    """Core has the published alpha, but applies it to the denoised latent: (1 - scale) (1 - alpha) x is missing."""
    cond, uncond, at = sampled((3, 4, 8, 8), 2, prediction)
    (function,) = CFGZeroStar.execute(eps).args[0].model_options["sampler_post_cfg_function"]
    core = function({
        "cond_scale": SCALE, "input": at.x, "cond_denoised": cond, "uncond_denoised": uncond, "denoised": plain(cond, uncond, SCALE),
    })  # fmt: skip
    alpha = optimized_scale(at.x - cond, at.x - uncond)
    missing = (1 - SCALE) * (1 - alpha) * at.x
    ours = RULES["zero_star"](cond, uncond, SCALE, at=at)
    torch.testing.assert_close(ours, core + missing, rtol=1e-4, atol=1e-4)
    v_c, v_u = at.d(cond), at.d(uncond)
    torch.testing.assert_close(at.d(ours), alpha * v_u + SCALE * (v_c - alpha * v_u), rtol=1e-3, atol=1e-4)
    assert missing.abs().mean() > 0.1


def test_frames_are_core_video_linear_cfg_with_frames_for_a_batch(eps):
    cond, uncond, at = sampled((1, 4, 7, 8, 8), 3)
    function = VideoLinearCFGGuidance().patch(eps, 1.5)[0].model_options["sampler_cfg_function"]
    one_by_one = {"cond": cond[0].transpose(0, 1), "uncond": uncond[0].transpose(0, 1), "cond_scale": SCALE}
    got = RULES["scale_schedule"](cond, uncond, SCALE, at=at, shape="frames", first_scale=1.5)
    torch.testing.assert_close(got[0].transpose(0, 1), function(one_by_one), rtol=1e-5, atol=1e-5)
