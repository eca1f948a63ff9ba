"""What the exponential integrators share with core's samplers of the same names, and where core's differ."""

from functools import partial
from itertools import pairwise
from math import log

import comfy.extra_samplers.uni_pc
import comfy.k_diffusion.deis
import comfy.k_diffusion.sampling as core
import comfy.samplers
import pytest
import tiny
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.solvers import SOLVERS

from bench.problems import mixture

EPS, FLOW = Path("eps"), Path("flow")
SIGMAS = {
    "eps": torch.tensor([14.6, 9.0, 5.0, 2.5, 1.2, 0.5, 0.2, 0.0], dtype=torch.float64),
    "flow": torch.tensor([1.0, 0.92, 0.8, 0.65, 0.45, 0.25, 0.1, 0.0], dtype=torch.float64),
}
PATHS = {"eps": EPS, "flow": FLOW}
every_path = pytest.mark.parametrize("name", PATHS)


def started(name):
    model = mixture(PATHS[name])
    return model, model.start(SIGMAS[name][0])


def ours(key, path, model, x, sigmas, **knobs):
    return SOLVERS[key](model, x, sigmas, path=path, **knobs)


def in_float32(model):
    return lambda x, sigma: model(x.double(), sigma.double()).float()


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@every_path
def test_dpm_solver_pp_of_order_2_is_core_dpmpp_2m(name):
    """On flow in log_sigma time; in lambda time, the published one, it is another method."""
    model, x = started(name)
    expected = core.sample_dpmpp_2m(model, x, SIGMAS[name], disable=True)
    close(ours("dpm_solver_pp", PATHS[name], model, x, SIGMAS[name], flow_time="log_sigma"), expected)
    lambda_time = ours("dpm_solver_pp", PATHS[name], model, x, SIGMAS[name])
    assert torch.allclose(lambda_time, expected, atol=1e-3) == (name == "eps")


@pytest.mark.parametrize("c2, tableau", [(0.5, "res_2s"), (1.0, "res_2s"), (1 / 3, "res_3s")])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_exp_rk_is_core_seeds_without_noise(nodes, kind, tableau, c2):
    """On flow, core moves sigma 1 to 0.9999 and ours does not, so the runs start below."""
    model, shape = tiny.build(kind)
    noise = tiny.noise_for(shape, [1])
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 6)[1:]
    if tableau == "res_2s":
        reference = partial(core.sample_seeds_2, eta=0.0, s_noise=0.0, r=c2, solver_type="phi_2")
    else:
        reference = partial(core.sample_seeds_3, eta=0.0, s_noise=0.0)
    expected = tiny.sample(model, noise, sampler=comfy.samplers.KSAMPLER(reference), sigmas=sigmas)
    got = tiny.sample(model, noise, sampler=tiny.sampler(nodes, "exp_rk", tableau=tableau, c2=c2), sigmas=sigmas)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_exact_order_2_is_core_res_multistep(nodes):
    model, shape = tiny.build("eps")
    noise = tiny.noise_for(shape, [1])
    sampler = tiny.sampler(nodes, "dpm_solver_pp", weights="exact")
    torch.testing.assert_close(
        tiny.sample(model, noise, sampler=sampler, steps=7),
        tiny.sample(model, noise, sampler="res_multistep", steps=7), rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_is_core_dpm_solver_class(order):
    model, x = started("eps")
    times = -SIGMAS["eps"][:-1].log()
    solver = core.DPMSolver(lambda x, sigma: model(x, sigma))
    step = getattr(solver, f"dpm_solver_{order}_step")
    expected = x
    for t, t_next in pairwise(times):
        expected, _ = step(expected, t, t_next)
    close(ours("dpm_solver", EPS, model, x, SIGMAS["eps"][:-1], order=order), expected)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@every_path
def test_unipc_is_core_uni_pc_in_log_sigma_time_but_for_the_end(name, variant):
    """Core stops at sigma 0.001, which it also writes into the caller's sigmas; ours ends on the last denoised."""
    model, x = started(name)
    x, sigmas, seen = x.float(), SIGMAS[name].float(), []  # core makes its coefficients in float32
    end = comfy.extra_samplers.uni_pc.sample_unipc(in_float32(model), x, sigmas, {}, seen.append, disable=True, variant=variant)
    knobs = {"order": 3, "variant": variant, "flow_time": "log_sigma"}
    got = ours("unipc", PATHS[name], in_float32(model), x, SIGMAS[name].float(), **knobs)
    close(got, seen[-1]["denoised"], 1e-4)
    assert float(sigmas[-1]) == pytest.approx(0.001) and (got - end).abs().max() > 1e-4


def core_time():
    """A path whose model time is the one core's deis gives to every model, EDM's of the VP-SDE up to sigma 80."""
    log_sigmas = torch.linspace(log(1e-3), log(80), 20_000, dtype=torch.float64)
    t, _, _ = comfy.k_diffusion.deis.edm2t(log_sigmas.exp())
    even = torch.linspace(float(t[0]), float(t[-1]), 20_000, dtype=torch.float64)
    upper = torch.searchsorted(t, even).clamp(1, len(t) - 1)
    share = (even - t[upper - 1]) / (t[upper] - t[upper - 1])
    return Path("eps", log_sigmas=torch.lerp(log_sigmas[upper - 1], log_sigmas[upper], share))


@pytest.mark.parametrize("order", [2, 3, 4])
@every_path
def test_deis_tab_is_core_deis_in_core_time(name, order):
    """Core gives every model the VP-SDE's time, and runs a flow as if it were VE. Ours gives a flow its own."""
    model, x = started(name)
    expected = core.sample_deis(model, x, SIGMAS[name], disable=True, max_order=order)
    close(ours("deis", core_time(), model, x, SIGMAS[name], order=order), expected, 2e-3)  # core sums 10,000 rectangles
    own_time = ours("deis", PATHS[name], model, x, SIGMAS[name], order=order)
    assert torch.allclose(own_time, expected, rtol=0, atol=2e-3) == (name == "eps")


def test_core_deis_has_no_usable_rhoab():
    model, x = started("eps")
    with pytest.raises(ValueError, match="too many values to unpack"):
        core.sample_deis(model, x, SIGMAS["eps"], disable=True, deis_mode="rhoab")


def test_deis_rhoab_of_order_2_is_core_ipndm_v_and_above_core_is_not_exact():
    model, x = started("eps")
    for order, same in ((2, True), (3, False)):
        expected = core.sample_ipndm_v(model, x, SIGMAS["eps"], disable=True, max_order=order)
        got = ours("deis", EPS, model, x, SIGMAS["eps"], deis_mode="rhoab", order=order)
        assert torch.allclose(got, expected, rtol=0, atol=1e-12) == same
