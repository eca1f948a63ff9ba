"""Our SIGMAS on real models: against core's schedulers, from the size of a latent, and written by hand."""

import comfy.model_base
import comfy.model_sampling
import comfy.nested_tensor
import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.schedules import SCHEDULES

FLOW_ONLY = {"dynamic_shift", "sd3_shift"}


def sigmas(nodes, model, method, steps=12, denoise=1.0, latent=None, **knobs):
    method = {"method": method, **knobs}
    return tiny.run(nodes["Distillery_Schedule"], model=model, method=method, steps=steps, denoise=denoise, latent=latent)[0]


def core(model, scheduler, steps=12):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def edit(nodes, model, points="", unit="sigma", interpolation="none", steps=None, **inputs):
    choice = {"interpolation": interpolation, **({"steps": steps} if steps else {})}
    return tiny.run(nodes["Distillery_SigmaEditor"], model=model, points=points, unit=unit, interpolation=choice, **inputs)[0]


def patched(name, *bases, **settings):
    """A tiny model with another of core's noise schedules."""
    model = tiny.build(name)[0].clone()
    sampling = type("Sampling", bases, {})(model.model.model_config)
    if settings:
        sampling.set_parameters(**settings)
    model.add_object_patch("model_sampling", sampling)
    return model


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")[0]


@pytest.fixture(scope="module")
def continuous():
    return patched("eps", comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM)


# Schedule


@pytest.mark.parametrize("key", SCHEDULES)
def test_every_schedule_samples_on_every_model_and_its_end_is_partial_denoise(nodes, built, key):
    model, shape = built
    latent = {"samples": torch.zeros(1, *shape)}
    if key in FLOW_ONLY and model.model.model_type == comfy.model_base.ModelType.EPS:
        with pytest.raises(ValueError, match="for flow models, and this model predicts eps"):
            sigmas(nodes, model, key, latent=latent)
        return
    levels = sigmas(nodes, model, key, steps=4, latent=latent)
    assert tiny.sample(model, tiny.noise_for(shape, [1]), sigmas=levels).isfinite().all()
    assert torch.equal(sigmas(nodes, model, key, 5, 0.5, latent), sigmas(nodes, model, key, 10, 1.0, latent)[5:])


@pytest.mark.parametrize(
    ("ours", "knobs", "theirs"),
    [("edm_rho", {"rho": 7.0}, "karras"), ("cosine_log_snr", {}, "kl_optimal"), ("uniform_lambda", {}, "exponential")],
)
def test_on_eps_these_are_cores_and_on_flow_cores_are_not_in_noise_over_signal(nodes, eps, flow, ours, knobs, theirs):
    torch.testing.assert_close(sigmas(nodes, eps, ours, **knobs), core(eps, theirs), rtol=1e-5, atol=0)
    assert (sigmas(nodes, flow[0], ours, **knobs) - core(flow[0], theirs)).abs().max() > 0.05


def test_what_timestep_spacing_adds_to_core(nodes, eps):
    """ddim_uniform gives another number of steps; sgm_uniform and simple leave the timesteps that trailing names."""
    assert len(core(eps, "ddim_uniform", 30)) == 32 and len(sigmas(nodes, eps, "leading", 30)) == 31
    torch.testing.assert_close(sigmas(nodes, eps, "leading", 20)[1:], core(eps, "ddim_uniform", 20)[1:], rtol=1e-5, atol=0)
    timestep = eps.get_model_object("model_sampling").timestep
    trained = list(range(999, 0, -250))
    assert timestep(sigmas(nodes, eps, "trailing", 4)[:-1]).tolist() == trained
    torch.testing.assert_close(sigmas(nodes, eps, "trailing", 4), core(eps, "simple", 4), rtol=1e-5, atol=0)
    assert (sigmas(nodes, eps, "trailing", 30) - core(eps, "simple", 30)).abs().max() > 0.01
    assert (sigmas(nodes, eps, "trailing", 4) - core(eps, "sgm_uniform", 4)).abs().max() > 0.002


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timestep_spacing_follows_the_shift_of_a_flow(nodes, shift):
    model = patched("flow", comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST, shift=shift)
    time = torch.tensor([1, 2 / 3, 1 / 3, 0])
    torch.testing.assert_close(sigmas(nodes, model, "trailing", 3), shift * time / (1 + (shift - 1) * time), rtol=0, atol=3e-6)
    levels = sigmas(nodes, model, "linspace", 3)
    assert float(levels[-2]) == pytest.approx(float(model.get_model_object("model_sampling").sigma_min), rel=1e-5)


def test_dynamic_shift_is_cores_model_sampling_flux(nodes, flow):
    """The same noise levels, from the latent instead of a typed size, and without a change to the model."""
    core_node = nodes["ModelSamplingFlux"]()
    model = core_node.patch(flow[0], max_shift=1.15, base_shift=0.5, width=768, height=512)[0]
    latent = {"samples": torch.zeros(1, 16, 64, 96)}
    ours = sigmas(nodes, flow[0], "dynamic_shift", 20, latent=latent)
    torch.testing.assert_close(ours, core(model, "simple", 20))
    assert torch.equal(ours, sigmas(nodes, model, "dynamic_shift", 20, latent=latent))  # the model's own shift has no part


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [("flow", (16, 64, 96), 32 * 48), ("flow", (16, 9, 8), 5 * 4), ("video", (16, 5, 64, 96), 5 * 32 * 48)],
)
def test_tokens_are_counted_as_the_network_cuts_them(nodes, name, size, tokens):
    model, _ = tiny.build(name)
    expected = SCHEDULES["sd3_shift"](6, 0.001, 1.0, path=Path("flow"), tokens=tokens)
    assert torch.equal(sigmas(nodes, model, "sd3_shift", 6, latent={"samples": torch.zeros(1, *size)}), expected)


def test_an_empty_latent_counts_at_the_size_the_sampler_will_give_it(nodes, flow):
    other = {"samples": torch.zeros(1, 4, 32, 32), "downscale_ratio_spacial": 16}  # for a 16x VAE; this model's is 8x
    own = {"samples": torch.zeros(1, 16, 64, 64)}
    assert torch.equal(sigmas(nodes, flow[0], "sd3_shift", latent=other), sigmas(nodes, flow[0], "sd3_shift", latent=own))


def test_what_a_schedule_lacks_is_named(nodes, flow, continuous):
    with pytest.raises(ValueError, match="Trailing timesteps needs table=.*this model has none.*edm_rho"):
        sigmas(nodes, continuous, "trailing")
    with pytest.raises(ValueError, match="SD3 shift needs tokens=.*Connect latent"):
        sigmas(nodes, flow[0], "sd3_shift")
    nested = {"samples": comfy.nested_tensor.NestedTensor([torch.zeros(1, 16, 8, 8), torch.zeros(1, 8, 4, 4)])}
    with pytest.raises(ValueError, match="latent holds several latents"):
        sigmas(nodes, flow[0], "sd3_shift", latent=nested)
    with pytest.raises(ValueError, match="steps / denoise is 2000, and this model has 1000 timesteps"):
        sigmas(nodes, tiny.build("eps")[0], "linspace", 20, 0.01)


# Sigma Editor


def test_points_mean_the_same_in_every_unit(nodes, built):
    model, _ = built
    sampling = model.get_model_object("model_sampling")
    shares = [0.2, 0.5, 0.9]
    levels = [float(sampling.sigma_max), *map(sampling.percent_to_sigma, shares), 0.0]
    expected = torch.tensor(levels)
    torch.testing.assert_close(edit(nodes, model, "0, 0.2, 0.5, 0.9, 1", "percent"), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(edit(nodes, model, " ".join(f"{level:.9g}" for level in levels)), expected, rtol=1e-6, atol=0)


def test_listed_timesteps_are_the_models_levels_and_end_clean(nodes, eps, flow):
    sampling = eps.get_model_object("model_sampling")
    levels = edit(nodes, eps, "[999, 759, 499, 259]", "timestep")
    assert levels[-1] == 0 and sampling.timestep(levels[:-1]).tolist() == [999, 759, 499, 259]
    turbo = tiny.run(nodes["SDTurboScheduler"], model=eps, steps=3, denoise=1.0)[0]
    torch.testing.assert_close(edit(nodes, eps, "999 899 799", "timestep"), turbo, rtol=1e-6, atol=0)
    sampling = flow[0].get_model_object("model_sampling")
    expected = torch.tensor([sampling.percent_to_sigma(share) for share in (0, 0.25, 0.5)] + [0])
    for points in ("1000, 750, 500", "1000, 750, 500, 0"):
        torch.testing.assert_close(edit(nodes, flow[0], points, "timestep"), expected, rtol=0, atol=2e-6)
    inserted = edit(nodes, eps, "500", "timestep", sigmas=turbo[:2])
    assert len(inserted) == 3 and inserted[-1] > 0


def test_a_schedule_is_edited_not_changed(nodes, flow):
    model, _ = flow
    before = core(model, "simple", 4)
    kept = before.clone()
    assert torch.equal(edit(nodes, model, sigmas=before), before)
    with_one = edit(nodes, model, "0.6", sigmas=before)
    assert sorted(with_one.tolist()) == sorted([*before.tolist(), float(torch.tensor(0.6))])
    high, low = edit(nodes, model, sigmas=before, lowest=0.6), edit(nodes, model, sigmas=before, highest=0.6)
    assert high[-1] == low[0] and torch.equal(torch.cat([high, low[1:]]), with_one)
    shifted = edit(nodes, model, sigmas=before, shift=3.0)
    torch.testing.assert_close(shifted, 3 * before / (1 + 2 * before))
    assert torch.equal(before, kept)


def test_a_curve_has_the_steps_asked_for_and_samples(nodes, built):
    model, shape = built
    top = float(model.get_model_object("model_sampling").sigma_max)
    for interpolation in ("linear", "log_linear", "monotone_cubic"):
        levels = edit(nodes, model, f"{top}, {top / 3}, {top / 30}, 0", interpolation=interpolation, steps=7)
        assert len(levels) == 8 and levels[-1] == 0
        assert tiny.sample(model, tiny.noise_for(shape, [1]), sigmas=levels).isfinite().all()


@pytest.mark.parametrize(
    ("message", "inputs"),
    [
        ("points is empty and sigmas is not connected", {}),
        (r"points\[1\] is half: write numbers", {"points": "1, half, 0"}),
        (r"points\[1\] is nan: write numbers", {"points": "1, nan, 0"}),
        (r"points\[2\] is -1: write numbers", {"points": "1, 0.5, -1"}),
        (r"points\[1\] is 0.2 and points\[2\] is 0.5: .* sigma falls", {"points": "1, 0.2, 0.5"}),
        (r"points\[1\] is 0 and points\[2\] is 0: .* no value twice", {"points": "1, 0, 0"}),
        (r"points\[0\] is 1 and points\[1\] is 0.5: .* percent rises", {"points": "1, 0.5", "unit": "percent"}),
        (r"points\[1\] is 50: percent goes from 0", {"points": "0, 50", "unit": "percent"}),
        (r"points\[0\] is 14.6: on a flow model", {"points": "14.6, 1, 0"}),
        (r"points\[0\] is 1001: this model's timesteps go from 0 to 1000", {"points": "1001, 500", "unit": "timestep"}),
        (r"sigmas\[0\] is 14.6: on a flow model", {"sigmas": torch.tensor([14.6, 0.0])}),
        (r"sigmas\[0\] is 0.5 and sigmas\[1\] is 0.7", {"sigmas": torch.tensor([0.5, 0.7])}),
        (r"sigmas has 1 value\(s\)", {"points": "1"}),
        (r"points has 1 level\(s\)", {"points": "1", "interpolation": "linear", "steps": 4}),
        ("highest is 0.2, lowest 0.5: nothing of the schedule", {"points": "1, 0", "highest": 0.2, "lowest": 0.5}),
    ],
)
def test_what_is_no_schedule_is_named(nodes, flow, message, inputs):
    with pytest.raises(ValueError, match=message):
        edit(nodes, flow[0], **inputs)


def test_timesteps_of_a_model_without_any(nodes, continuous):
    with pytest.raises(ValueError, match="unit is timestep: this model has none"):
        edit(nodes, continuous, "999, 500", "timestep")
