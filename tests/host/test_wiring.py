"""Every method through the real CFGGuider and ModelPatcher, on eps, flow and video models."""

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.solvers import SOLVERS

CORE_SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if not name.endswith("_gpu")]


@pytest.fixture(scope="module", params=list(tiny.MODELS))
def built(request):
    return tiny.build(request.param)


@pytest.fixture(scope="module")
def flow():
    return tiny.build("flow")


def solver_sampler(nodes, name, **knobs):
    family = {"momentum": "Distillery_SamplerMomentum", "conjugate": "Distillery_SamplerConjugate"}[SOLVERS[name].family]
    return tiny.run(nodes[family], method={"method": name, **knobs})[0]


def guided(nodes, model, **knobs):
    return tiny.run(nodes["Distillery_ProjectedGuidance"], model=model, method={"method": "apg", **knobs})[0]


# Samplers


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_repeats_itself_and_keeps_items_apart(nodes, built, name):
    model, shape = built
    sampler = solver_sampler(nodes, name)
    noise = tiny.noise_for(shape, [1, 2])
    both = tiny.sample(model, noise, sampler=sampler)
    assert both.shape == noise.shape and both.isfinite().all()
    assert torch.equal(both, tiny.sample(model, noise, sampler=sampler))
    alone = tiny.sample(model, noise[1:], sampler=sampler)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("order", "core"), [(1, "sample_euler"), (2, "sample_ipndm"), (4, "sample_ipndm")])
@pytest.mark.parametrize("name", ["ghvb", "heavy_ball", "nesterov"])
def test_whole_orders_are_core_euler_and_ipndm(nodes, built, name, order, core):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    options = {"max_order": order} if order > 1 else {}
    core = comfy.samplers.KSAMPLER(getattr(comfy.k_diffusion.sampling, core), options)
    expected = tiny.sample(model, noise, sampler=core, steps=6)
    got = tiny.sample(model, noise, sampler=solver_sampler(nodes, name, order=float(order)), steps=6)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_lambda_ddim_at_zero_is_core_euler(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    got = tiny.sample(model, noise, sampler=solver_sampler(nodes, "lambda_ddim", lambda_c=0.0))
    torch.testing.assert_close(got, tiny.sample(model, noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_inpainting_keeps_what_the_mask_protects(nodes, built, name):
    model, shape = built
    latent = tiny.noise_for(shape, [7])
    mask = torch.zeros(1, 1, *shape[1:])
    mask[..., :4] = 1
    out = tiny.sample(model, tiny.noise_for(shape, [1]), sampler=solver_sampler(nodes, name), latent=latent, mask=mask)
    torch.testing.assert_close(out[..., 4:], latent[..., 4:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out[..., :4], latent[..., :4], atol=1e-2)


def test_rising_sigmas_are_refused_before_any_evaluation(nodes, flow):
    model, shape = flow
    with pytest.raises(ValueError, match=r"sigmas\[0\] is 0.2 and sigmas\[1\] is 0.5"):
        tiny.sample(
            model, tiny.noise_for(shape, [1]), sampler=solver_sampler(nodes, "ghvb"), sigmas=torch.tensor([0.2, 0.5, 0.0])
        )


def test_an_interruption_stops_within_one_step(nodes, flow):
    model, shape = flow
    seen = []

    def stop_at_second(step, denoised, x, total):
        seen.append(step)
        comfy.model_management.interrupt_current_processing(step == 1)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(
            model, tiny.noise_for(shape, [1]), sampler=solver_sampler(nodes, "ghvb"), steps=9, callback=stop_at_second
        )
    assert seen == [0, 1]


# Schedules and noise


def test_uniform_lambda_is_core_exponential_on_eps(nodes):
    model, _ = tiny.build("eps")
    sigmas = tiny.run(nodes["Distillery_Schedule"], model=model, method={"method": "uniform_lambda"}, steps=12, denoise=1.0)[0]
    core = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "exponential", 12)
    torch.testing.assert_close(sigmas, core, rtol=1e-5, atol=0)


def test_partial_denoise_is_the_end_of_a_longer_schedule(nodes, flow):
    def sigmas(steps, denoise):
        method = {"method": "uniform_lambda"}
        return tiny.run(nodes["Distillery_Schedule"], model=flow[0], method=method, steps=steps, denoise=denoise)[0]

    assert torch.equal(sigmas(5, 0.5), sigmas(10, 1.0)[5:])


def test_item_noise_is_the_noise_of_single_runs(nodes):
    latent = torch.zeros(3, 16, 8, 8)
    batch = tiny.run(nodes["Distillery_NoisePerItem"], seed=7)[0].generate_noise({"samples": latent})
    for i in range(3):
        assert torch.equal(batch[i : i + 1], comfy.sample.prepare_noise(latent[:1], 7 + i))
    picked = tiny.run(nodes["Distillery_NoisePerItem"], seed=7)[0].generate_noise(
        {"samples": latent[:1], "batch_index": [2]}
    )
    assert torch.equal(picked, batch[2:])


# Guidance


def test_neutral_guidance_is_core_bit_for_bit(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    for name, rule in RULES.items():
        patched = tiny.run(nodes["Distillery_ProjectedGuidance"], model=model, method={"method": name, **rule.neutral})[0]
        assert torch.equal(tiny.sample(patched, noise), tiny.sample(model, noise))


def test_guidance_leaves_cfg_1_and_the_input_model_alone(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    before = tiny.sample(model, noise)
    patched = guided(nodes, model)
    assert torch.equal(tiny.sample(patched, noise, cfg=1.0), tiny.sample(model, noise, cfg=1.0))
    assert not torch.equal(tiny.sample(patched, noise), before)
    assert torch.equal(tiny.sample(model, noise), before)


def test_one_step_of_guidance_is_the_published_formula(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.sigma_max) * 0.9, 0.0])
    into = model.model.process_latent_in

    def denoised(positive):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(tiny.prompt(positive), tiny.prompt(2))
        guider.set_cfg(1.0)
        with torch.inference_mode():
            sampler = comfy.samplers.sampler_object("euler")
            return into(guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)).double()

    cond, uncond = denoised(1), denoised(2)
    difference = (cond - uncond).flatten(1)
    difference = difference * (1.5 / difference.norm(dim=1, keepdim=True)).clamp(max=1)
    unit = cond.flatten(1) / cond.flatten(1).norm(dim=1, keepdim=True)
    parallel = (difference * unit).sum(1, keepdim=True) * unit
    expected = cond + 5.0 * (difference - parallel + 0.25 * parallel).view_as(cond)
    got = tiny.sample(guided(nodes, model, eta=0.25, norm_threshold=1.5, momentum=-0.5), noise, cfg=6.0, sigmas=sigmas)
    torch.testing.assert_close(into(got).double(), expected, rtol=1e-4, atol=1e-4)


def test_guidance_momentum_does_not_leak_into_the_next_run(nodes, flow):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
    low = sigmas[5:]
    once = tiny.sample(guided(nodes, model), noise, sigmas=low, latent=noise)
    used = guided(nodes, model)
    tiny.sample(used, noise, sigmas=sigmas[:6])
    assert torch.equal(tiny.sample(used, noise, sigmas=low, latent=noise), once)


def test_guidance_keeps_items_apart(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    patched = guided(nodes, model)
    alone = tiny.sample(patched, noise[1:])
    torch.testing.assert_close(tiny.sample(patched, noise)[1:], alone, rtol=1e-3, atol=1e-3)


def test_guidance_refuses_a_foreign_cfg_function_by_name(nodes, flow):
    model, shape = flow
    taken = model.clone()

    def foreign_rescale(args):
        return args["cond"]

    taken.set_model_sampler_cfg_function(foreign_rescale)
    with pytest.raises(ValueError, match="foreign_rescale"):
        tiny.sample(guided(nodes, taken), tiny.noise_for(shape, [1]))


def test_guidance_adds_to_what_other_patches_did(nodes, flow):
    """Another pack's addition after the CFG step survives: the patches' effects on one step add up."""
    model, shape = flow
    noise, sigmas = tiny.noise_for(shape, [1]), torch.tensor([0.9, 0.0])

    def brighter(args):
        return args["denoised"] + 0.5

    other = model.clone()
    other.set_model_sampler_post_cfg_function(brighter)
    runs = [model, other, guided(nodes, model), guided(nodes, other)]
    plain, brightened, projected, both = (tiny.sample(m, noise, sigmas=sigmas) for m in runs)
    torch.testing.assert_close(both - projected, brightened - plain, rtol=1e-3, atol=1e-3)


# Reports


def traced(nodes, model):
    return tiny.run(nodes["Distillery_Trace"], model=model)


@pytest.mark.parametrize("name", CORE_SAMPLERS)
def test_trace_changes_nothing(nodes, flow, name):
    model, shape = flow
    noise = tiny.noise_for(shape, [1])
    torch.manual_seed(0)
    plain = tiny.sample(model, noise, sampler=name)
    watched, report = traced(nodes, model)
    torch.manual_seed(0)
    assert torch.equal(tiny.sample(watched, noise, sampler=name), plain)
    assert report.runs[0]["totals"]["evaluations"] > 0


@pytest.mark.parametrize(
    ("sampler", "cfg", "evaluations", "per_step"),
    [("euler", 4.0, 10, [2, 2, 2, 2, 2]), ("euler", 1.0, 5, [1] * 5), ("heun", 4.0, 18, [4, 4, 4, 4, 2])],
)
def test_trace_counts_evaluations(nodes, built, sampler, cfg, evaluations, per_step):
    model, shape = built
    watched, report = traced(nodes, model)
    tiny.sample(watched, tiny.noise_for(shape, [1, 2]), sampler=sampler, steps=5, cfg=cfg)
    (run,) = report.runs
    assert run["totals"]["evaluations"] == evaluations
    assert [sum(row["evaluations"].values()) for row in run["steps"]] == per_step
    assert [row["step"] for row in run["steps"]] == [0, 1, 2, 3, 4]
    assert run["complete"]
    assert run["totals"]["seconds"] >= sum(row["seconds"] for row in run["steps"]) > 0


def test_trace_of_an_interrupted_run_says_so(nodes, flow):
    model, shape = flow
    watched, report = traced(nodes, model)

    def stop(step, denoised, x, total):
        if step == 2:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(watched, tiny.noise_for(shape, [1]), steps=6, callback=stop)
    assert report.runs[0]["totals"]["steps"] == 3 and not report.runs[0]["complete"]


# Every node that takes a model


def model_nodes(nodes):
    from comfy_api.latest import io

    for name, node in nodes.items():
        if name.startswith("Distillery_"):
            schema = node.GET_SCHEMA()
            if any(isinstance(i, io.Model.Input) for i in schema.inputs):
                yield node, any(isinstance(o, io.Model.Output) for o in schema.outputs)


def test_model_nodes_return_a_clone_that_refuses_a_foreign_latent(nodes, flow):
    model, _ = flow
    for node, gives_model in model_nodes(nodes):
        if not gives_model:
            continue
        inputs = {"model": model}
        if any(i.id == "method" for i in node.GET_SCHEMA().inputs):
            inputs["method"] = {"method": "apg"}
        patched = tiny.run(node, **inputs)[0]
        assert patched is not model and not model.wrappers.get("outer_sample")
        with pytest.raises(ValueError, match="latent_image has 4 channels and this model works on 16"):
            tiny.sample(patched, tiny.noise_for((4, 8, 8), [1]))
