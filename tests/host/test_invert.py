"""Invert through the real CFGGuider and ModelPatcher: the way back gives the picture, on eps, flow and video models."""

import comfy.model_management
import comfy.samplers
import comfy.utils
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_distillery.samplers.solvers import SOLVERS

CFG = 4.0
every_method = pytest.mark.parametrize("method", ["bdia", "edict"])


def sigmas_of(model, steps=8, denoise=1.0):
    total = round(steps / denoise)
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", total)[-(steps + 1) :]


def inverted(nodes, model, picture, sigmas, method="bdia", cfg=CFG, **inputs):
    """(LATENT, SAMPLER)"""
    given = {
        "model": model, "positive": tiny.prompt(1), "negative": tiny.prompt(2), "cfg": cfg, "sigmas": sigmas,
        "sampler": tiny.sampler(nodes, method), "latent_image": {"samples": picture},
    }  # fmt: skip
    with torch.inference_mode():
        return tiny.run(nodes["Distillery_Invert"], **(given | inputs))


def sampled(nodes, model, latent, sampler, sigmas, positive=1, cfg=CFG, add_noise=False):
    with torch.inference_mode():
        return tiny.run(
            nodes["SamplerCustom"], model=model, add_noise=add_noise, noise_seed=3, cfg=cfg, positive=tiny.prompt(positive),
            negative=tiny.prompt(2), sampler=sampler, sigmas=sigmas, latent_image=latent,
        )[0]["samples"]  # fmt: skip


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@every_method
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_the_way_back_gives_the_picture_and_another_prompt_another(nodes, built, method, denoise):
    model, shape = built
    picture, sigmas = tiny.noise_for(shape, [1, 2]), sigmas_of(model, denoise=denoise)
    latent, sampler = inverted(nodes, model, picture, sigmas, method)
    assert latent["samples"].isfinite().all() and relative(latent["samples"], picture) > 0.1
    assert relative(sampled(nodes, model, latent, sampler, sigmas), picture) < 1e-6
    assert relative(sampled(nodes, model, latent, sampler, sigmas, positive=3), picture) > 0.01


@every_method
@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_model_in_half_precision_leads_back_as_exactly(nodes, name, method):
    model, shape = tiny.build(name, torch.bfloat16)
    picture, sigmas = tiny.noise_for(shape, [1]), sigmas_of(model)
    latent, sampler = inverted(nodes, model, picture, sigmas, method)
    assert relative(sampled(nodes, model, latent, sampler, sigmas), picture) < 1e-6


@every_method
def test_sampler_custom_advanced_leads_back_too(nodes, built, method):
    model, shape = built
    picture, sigmas = tiny.noise_for(shape, [1]), sigmas_of(model)
    latent, sampler = inverted(nodes, model, picture, sigmas, method, cfg=1.0)
    with torch.inference_mode():
        (guider,) = tiny.run(nodes["BasicGuider"], model=model, conditioning=tiny.prompt(1))
        (no_noise,) = tiny.run(nodes["DisableNoise"])
        back = tiny.run(
            nodes["SamplerCustomAdvanced"], noise=no_noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
        )[0]["samples"]
    assert relative(back, picture) < 1e-6


@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_other_samplers_start_from_the_same_noise(nodes, built, denoise):
    """The latent is in core's sense: its samplers get the recorded state, but for sigma 1 of a flow."""
    model, shape = built
    sigmas, seen = sigmas_of(model, denoise=denoise), []
    latent, sampler = inverted(nodes, model, tiny.noise_for(shape, [1]), sigmas)

    def look(model, x, sigmas, extra_args=None, callback=None, disable=None):
        seen.append(x)
        return x

    sampled(nodes, model, latent, comfy.samplers.KSAMPLER(look), sigmas)
    start = sampler.inversion.pair[0].float()
    if sigmas[0] == 1 and sampler.inversion.path.is_flow:
        assert not seen[0].any()
        seen = [model.model.process_latent_in(latent["samples"])]
    torch.testing.assert_close(seen[0], start, rtol=1e-5, atol=1e-5)


@every_method
def test_items_of_a_batch_are_inverted_apart(nodes, built, method):
    model, shape = built
    picture, sigmas = tiny.noise_for(shape, [1, 2]), sigmas_of(model)
    both = inverted(nodes, model, picture, sigmas, method)[0]["samples"]
    alone = inverted(nodes, model, picture[1:], sigmas, method)[0]["samples"]
    assert relative(both[1:], alone) < 1e-3


@pytest.mark.parametrize(("method", "there", "back"), [("bdia", 8, 7), ("edict", 16, 16)])
def test_evaluations_and_progress(nodes, flow, method, there, back):
    model, report = tiny.run(nodes["Distillery_Trace"], model=flow[0])
    sigmas, moved = sigmas_of(model), []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: moved.append((value, total)))
    try:
        latent, sampler = inverted(nodes, model, tiny.noise_for(flow[1], [1]), sigmas, method)
        assert moved[0] == (1, 8) and moved[-1] == (8, 8)
        assert report.runs[0]["totals"]["branches"] == {"cond": there, "uncond": there}
        moved.clear()
        sampled(nodes, model, latent, sampler, sigmas)
        assert moved[-1] == (8, 8)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert report.runs[0]["totals"]["branches"] == {"cond": back, "uncond": back}


@every_method
def test_an_interruption_stops_the_inversion_within_one_step(nodes, flow, method):
    model, calls = flow[0].clone(), []

    def interrupt_third(executor, *args, **kwargs):
        calls.append(1)
        comfy.model_management.interrupt_current_processing(len(calls) == 3)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", interrupt_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        inverted(nodes, model, tiny.noise_for(flow[1], [1]), sigmas_of(model), method)
    assert len(calls) == 3


# What is refused


def falling(*values):
    return torch.tensor(values)


def test_what_cannot_be_inverted_is_refused_before_any_evaluation(nodes, flow):
    model, report = tiny.run(nodes["Distillery_Trace"], model=flow[0])
    picture, good = tiny.noise_for(flow[1], [1]), sigmas_of(model)
    refused = [
        ("sampler is sample_euler_ancestral, .* Connect an Invertible", {"sampler": comfy.samplers.sampler_object("euler_ancestral")}),
        ("sampler is sample_unipc", {"sampler": comfy.samplers.sampler_object("uni_pc")}),
        ("sampler is GHVB momentum, which cannot be run backwards", {"sampler": tiny.sampler(nodes, "ghvb")}),
        ("gamma 0 over 8 steps", {"sampler": tiny.sampler(nodes, "bdia", gamma=0.0)}),
        ("has a mask", {"latent_image": {"samples": picture, "noise_mask": torch.ones(1, 8, 8)}}),
        ("latent_image has 4 channels and this model works on 16", {"latent_image": {"samples": picture[:, :4]}}),
        ("sigmas has 0 value", {"sigmas": torch.tensor([])}),
        (r"sigmas has 1 step\(s\) and BDIA inverts 2", {"sigmas": falling(1.0, 0.0)}),
        ("0 may only come last", {"sigmas": falling(1.0, 0.0, 0.0)}),
        ("sigmas must fall strictly", {"sigmas": good.flip(0)}),
        ("sigmas.0. is 14.6 and this model's noisiest level is 1:", {"sigmas": falling(14.6, 1.0, 0.0)}),
    ]
    for message, inputs in refused:
        with pytest.raises(ValueError, match=message):
            inverted(nodes, model, picture, **({"sigmas": good} | inputs))
    assert report.runs == []


def test_a_solver_that_draws_noise_is_refused_as_such(nodes):
    stochastic = [key for key, solver in SOLVERS.items() if solver.stochastic]
    for key in stochastic:
        with pytest.raises(ValueError, match="cannot be run backwards exactly, as it draws noise"):
            inverted(nodes, tiny.build("flow")[0], torch.zeros(1, 16, 8, 8), falling(1.0, 0.5, 0.0), key)


def test_a_run_that_would_not_lead_back_is_refused_before_any_evaluation(nodes, flow):
    model, report = tiny.run(nodes["Distillery_Trace"], model=flow[0])
    eps, eps_shape = tiny.build("eps")
    sigmas = sigmas_of(model, denoise=0.6)
    latent, sampler = inverted(nodes, model, tiny.noise_for(flow[1], [1]), sigmas)
    other, two = {"samples": -latent["samples"]}, {"samples": latent["samples"].repeat(2, 1, 1, 1)}
    masked = {**latent, "noise_mask": torch.ones(1, 8, 8)}
    refused = [
        ("Turn add_noise off", model, latent, sigmas, {"add_noise": True}),
        ("has a mask", model, masked, sigmas, {}),
        ("connect the same SIGMAS", model, latent, sigmas_of(model, denoise=0.7), {}),
        ("not the LATENT that came out of Invert", model, other, sigmas, {}),
        ("not the LATENT that came out of Invert", model, two, sigmas, {}),
        ("predicts eps and that of Invert predicts flow", eps, {"samples": tiny.noise_for(eps_shape, [1])}, sigmas, {}),
    ]
    for message, used, given, levels, options in refused:
        with pytest.raises(ValueError, match=message):
            sampled(nodes, used, given, sampler, levels, **options)
        assert used is eps or report.runs[0]["totals"]["evaluations"] == 0
