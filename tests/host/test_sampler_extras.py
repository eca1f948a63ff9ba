"""Sampler nodes that take more than knobs, through the real ComfyUI; and gradient estimation beside core's."""

import json

import comfy.samplers
import pytest
import tiny
import torch


def shortcut(nodes, method="gaussian_teleport", samples=None, sampler=None, **knobs):
    given = {"samples": None if samples is None else {"samples": samples}, "sampler": sampler}
    given = {name: value for name, value in given.items() if value is not None}
    return tiny.run(nodes["Distillery_SamplerShortcut"], method={"method": method, **knobs}, **given)[0]


def test_samples_are_brought_to_the_scale_that_the_model_works_on(nodes, flow):
    """Samples that hardly differ leave one point: the jump then puts their mean, as the model sees it, beside the noise left."""
    model, shape = flow
    picture, noise, seen = tiny.noise_for(shape, [9]), tiny.noise_for(shape, [1]), []
    sampler = shortcut(nodes, samples=torch.cat([picture, picture]), skip=0.75)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    tiny.sample(model, noise, sampler=sampler, sigmas=sigmas, callback=lambda step, denoised, x, total: seen.append((step, x)))
    mean = model.get_model_object("latent_format").process_in(picture)
    assert [step for step, _ in seen] == [0, 1, 2, 3] and not torch.allclose(mean, picture, atol=1e-2)
    torch.testing.assert_close(seen[3][1], (1 - sigmas[3]) * mean + sigmas[3] * noise, rtol=1e-4, atol=1e-4)


def test_the_sampler_given_does_the_remaining_steps(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    heun = comfy.samplers.sampler_object("heun")
    expected = tiny.sample(model, noise, sampler=heun)
    torch.testing.assert_close(tiny.sample(model, noise, sampler=shortcut(nodes, sampler=heun, skip=0.0)), expected)
    skipped = tiny.sample(model, noise, sampler=shortcut(nodes, sampler=heun, skip=0.5))
    assert not torch.allclose(skipped, expected, atol=1e-2)
    assert not torch.allclose(skipped, tiny.sample(model, noise, sampler=shortcut(nodes, skip=0.5)), atol=1e-2)


def test_what_cannot_be_used_is_refused(nodes, flow):
    model, shape = flow
    with pytest.raises(ValueError, match="samples is connected, which time_shift cannot use"):
        shortcut(nodes, "time_shift", samples=torch.zeros(2, *shape))
    wrong = shortcut(nodes, samples=torch.zeros(2, shape[0], 4, 4))
    with pytest.raises(ValueError, match=r"samples has latents of the shape \(16, 4, 4\) and this run has \(16, 8, 8\)"):
        tiny.sample(model, tiny.noise_for(shape, [1]), sampler=wrong)


def rule(nodes, steps, prediction="data", order=2, corrector=False, weights="exact", **more):
    knobs = {"prediction": prediction, "order": order, "corrector": corrector, "weights": weights}
    return tiny.run(nodes["Distillery_StepRule"], steps=steps, **knobs, **more)[0]


def test_rules_add_up_to_a_recipe(nodes, built):
    model, shape = built
    recipe = rule(nodes, 2, order=3, recipe=rule(nodes, 1, "slope", 1, corrector=True))
    method = {"method": "per_step", "prediction": "noise"}
    sampler, info = tiny.run(nodes["Distillery_SamplerPerStep"], method=method, recipe=recipe)
    rules = json.loads(info.splitlines()[-1].removeprefix("First steps: "))
    assert [(values["prediction"], values["order"]) for values in rules] == [("slope", 1), ("data", 3), ("data", 3)]
    noise = tiny.noise_for(shape, [1])
    mixed = tiny.sample(model, noise, sampler=sampler, steps=5)
    assert mixed.isfinite().all()
    assert not torch.allclose(mixed, tiny.sample(model, noise, sampler=tiny.sampler(nodes, "per_step"), steps=5), atol=1e-3)
    with pytest.raises(ValueError, match="recipe has rules for 3 steps and sigmas has 2"):
        tiny.sample(model, noise, sampler=sampler, steps=2)


def test_order_2_of_data_is_core_res_multistep(nodes):
    model, shape = tiny.build("eps")
    noise = tiny.noise_for(shape, [1])
    got = tiny.sample(model, noise, sampler=tiny.sampler(nodes, "per_step"), steps=6)
    torch.testing.assert_close(got, tiny.sample(model, noise, sampler="res_multistep", steps=6), rtol=1e-3, atol=1e-3)


def test_without_the_last_extrapolation_it_is_core_gradient_estimation(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    core = tiny.sample(model, noise, sampler="gradient_estimation", steps=6)
    ours = tiny.sampler(nodes, "gradient_estimation", last_step_extrapolation=False)
    torch.testing.assert_close(tiny.sample(model, noise, sampler=ours, steps=6), core, rtol=1e-4, atol=1e-4)
    published = tiny.sample(model, noise, sampler=tiny.sampler(nodes, "gradient_estimation"), steps=6)
    assert not torch.allclose(published, core, atol=1e-3)
