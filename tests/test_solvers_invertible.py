"""BDIA and EDICT: the way back ends on what was inverted, and each is the update its paper prints."""

import pytest
import torch
from comfyui_distillery.samplers.solvers import SOLVERS, reversible
from comfyui_distillery.samplers.solvers.reversible import Invertible

from .problems import EPS, FLOW, PATHS, assert_close, convergence, gaussian, graded, mixture, number

KEYS = sorted(key for key, solver in SOLVERS.items() if isinstance(solver, Invertible))
RANGE = {"eps": (14.6, 0.1), "flow": (1.0, 0.1)}
every_key = pytest.mark.parametrize("key", KEYS)
every_path = pytest.mark.parametrize("name", PATHS)


def sigmas_of(name, n, last=0.0):
    sigmas = graded(n, 14.6, 0.05, power=1) if name == "eps" else torch.linspace(1, 0.02, n + 1, dtype=torch.float64)
    return torch.cat([sigmas[:-1], number([last])])


def round_trip(key, name, model, x, sigmas, **knobs):
    """(the pair, where sampling from it ends)"""
    solver, path = SOLVERS[key], PATHS[name]
    pair = solver.invert(model, x, sigmas, path=path, **knobs)
    return pair, solver.resuming(pair)(model, x, sigmas, path=path, **knobs)


@pytest.mark.parametrize(("key", "knobs", "counts"), [
    ("bdia", {}, (2, 15, 16, 50)), ("bdia", {"gamma": 0.5}, (13, 14)), ("edict", {}, (1, 15, 16, 50)), ("edict", {"p": 1.0}, (16, 17)),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("last", [0.0, 0.01])
@every_path
def test_the_round_trip_is_exact(name, last, key, knobs, counts):
    model = mixture(PATHS[name])
    for n in counts:
        sigmas = sigmas_of(name, n, last)
        x = model.start(sigmas[-1])
        pair, back = round_trip(key, name, model, x, sigmas, **knobs)
        assert (back - x).abs().max() < 1e-10
        assert n < 10 or (pair[0] - x).abs().max() > 0.1 * sigmas[0]


@every_key
@every_path
def test_inverting_converges_on_the_ode_backwards(name, key):
    """So what comes out is the noise that the picture comes from, not any that leads there."""
    model, counts = gaussian(PATHS[name]), [20, 40, 80]
    knobs = {"p": 0.97} if key == "edict" else {}  # 0.93 is for fewer steps

    def error(n):
        sigmas = graded(n, *RANGE[name], power=1)
        x = model.start(sigmas[-1])
        noise, _ = SOLVERS[key].invert(model, x, sigmas, path=PATHS[name], **knobs)
        return (noise - model.exact(x, sigmas[-1], sigmas[0])).abs().max() / sigmas[0]

    errors = [error(n) for n in counts]
    assert convergence(errors, counts) == pytest.approx(SOLVERS[key].declared_order(), abs=0.2)


@pytest.mark.parametrize("n", [5, 6])
@pytest.mark.parametrize("p", [0.93, 0.7])
@every_path
def test_edict_is_the_published_recursion(name, p, n):
    """Also backwards, for even and odd numbers of steps. On flow the network's output is a velocity, so a = 1 and b = dsigma."""
    path, sigmas = PATHS[name], sigmas_of(name, n, 0.1)
    model = gaussian(path)
    x = model.start(sigmas[0])
    pair, back = round_trip("edict", name, model, x, sigmas, p=p)
    if name == "eps":
        norms = (1 + sigmas**2).sqrt()
        a, b = ddim(1 / (1 + sigmas**2))

        def network(z, i):  # the noise it predicts in the VP latent z
            return (z * norms[i] - model(z * norms[i], sigmas[i].expand(len(z)))) / sigmas[i]
    else:
        norms, a, b = torch.ones_like(sigmas), torch.ones(n), sigmas.diff()

        def network(z, i):
            return (z - model(z, sigmas[i].expand(len(z)))) / sigmas[i]

    expected, _ = edict_forward(network, a, b, x / norms[0], x / norms[0], p)
    assert_close(SOLVERS["edict"](model, x, sigmas, path=path, p=p), expected * norms[-1], 1e-12)
    assert_close(back, x, 1e-12)
    for got, plain in zip(pair, edict_backward(network, a, b, x / norms[-1], x / norms[-1], p)):
        assert_close(got, plain * norms[0], 1e-11)


def ddim(alpha_bar):
    """a and b of every step z' = a z + b eps, as the paper writes DDIM."""
    now, following = alpha_bar[:-1], alpha_bar[1:]
    a = (following / now).sqrt()
    return a, (1 - following).sqrt() - a * (1 - now).sqrt()


def edict_forward(network, a, b, x, y, p):
    n = len(a)
    for i in range(n):
        if (n - i) % 2 == 1:  # the last step updates x first
            x = a[i] * x + b[i] * network(y, i)
            y = a[i] * y + b[i] * network(x, i)
        else:
            y = a[i] * y + b[i] * network(x, i)
            x = a[i] * x + b[i] * network(y, i)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return x, y


def edict_backward(network, a, b, x, y, p):
    n = len(a)
    for i in range(n - 1, -1, -1):
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        if (n - i) % 2 == 1:
            y = (y - b[i] * network(x, i)) / a[i]
            x = (x - b[i] * network(y, i)) / a[i]
        else:
            x = (x - b[i] * network(y, i)) / a[i]
            y = (y - b[i] * network(x, i)) / a[i]
    return x, y


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_bdia_is_the_published_recursion(gamma):
    sigmas, model = sigmas_of("eps", 6, 0.1), gaussian(EPS)
    alpha, sigma = 1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt()

    def jump(z, i, j):
        clean = model(z / alpha[i], sigmas[i].expand(len(z)))
        return alpha[j] * clean + sigma[j] * (z - alpha[i] * clean) / sigma[i]

    x = model.start(sigmas[0])
    states = [x * alpha[0]]
    for i in range(6):
        correction = gamma * (states[i - 1] - jump(states[i], i, i - 1)) if i else 0
        states.append(jump(states[i], i, i + 1) + correction)
    got = SOLVERS["bdia"](model, x, sigmas, path=EPS, gamma=gamma)
    assert_close(got, states[-1] / alpha[-1], 1e-12)


def test_bdia_on_flow_is_the_published_step_with_the_flows_own_alpha():
    """In VE coordinates, with gamma alpha[i-1] / alpha[i+1], alpha being 1 - sigma."""
    model, gamma = mixture(FLOW), 0.9
    sigmas = torch.linspace(0.95, 0.05, 13, dtype=torch.float64)
    alpha, start = 1 - sigmas, model.start(sigmas[0])
    ve, states = sigmas / alpha, [start / alpha[0]]
    for i in range(12):
        x = states[i]
        d = (x - model(x * alpha[i], sigmas[i].expand(len(x)))) / ve[i]
        missed = states[i - 1] - x - (ve[i - 1] - ve[i]) * d if i else 0
        states.append(x + (ve[i + 1] - ve[i]) * d + gamma * alpha[i - 1] / alpha[i + 1] * missed)
    assert_close(SOLVERS["bdia"](model, start, sigmas, path=FLOW, gamma=gamma), states[-1] * alpha[-1], 1e-12)


# Precision


def in_bfloat16(model):
    """A network that computes, and rounds, in half precision."""
    return lambda x, sigma: model(x.bfloat16().double(), sigma.double()).bfloat16().to(x)


@every_key
@every_path
@pytest.mark.parametrize("network", [lambda model: model, in_bfloat16], ids=["float32", "bfloat16"])
def test_a_float32_picture_comes_back_to_its_last_digits(network, name, key):
    problem, sigmas = mixture(PATHS[name]), sigmas_of(name, 30).float()
    x = problem.start(number(0.0), batch=64).float()
    _, back = round_trip(key, name, network(problem), x, sigmas)
    assert back.dtype == torch.float32
    assert (back - x).abs().max() < 3e-7


@every_key
@every_path
@pytest.mark.parametrize(("network", "bound"), [(lambda model: model, 1e-5), (in_bfloat16, 1e-3)], ids=["float32", "bfloat16"])
def test_where_there_is_no_float64_the_error_is_bounded(monkeypatch, network, bound, name, key):
    monkeypatch.setattr(reversible, "HAS_FLOAT64", ())
    problem, sigmas = mixture(PATHS[name]), sigmas_of(name, 30).float()
    x = problem.start(number(0.0), batch=64).float()
    _, back = round_trip(key, name, network(problem), x, sigmas)
    assert (back - x).abs().max() < bound


# What a caller may rely on


@every_key
@every_path
def test_calls_callbacks_and_items(name, key):
    model, calls, seen = gaussian(PATHS[name]), [], []
    sigmas = sigmas_of(name, 6)
    x = model.start(sigmas[-1])
    before = x.clone()

    def counted(x, sigma, mark):
        calls.append(float(sigma[0]))
        return model(x, sigma)

    solver = SOLVERS[key]
    pair = solver.invert(counted, x, sigmas, {"mark": 1}, seen.append, path=PATHS[name])
    assert torch.equal(x, before)
    assert len(calls) == 6 * solver.evaluations and calls == sorted(calls) and min(calls) > 0
    assert [entry["i"] for entry in seen] == list(range(6))
    assert all(entry.keys() == {"x", "i", "sigma", "sigma_hat", "denoised"} for entry in seen)
    for i in range(len(x)):
        alone = solver.invert(model, x[i : i + 1], sigmas, path=PATHS[name])
        for state, whole in zip(alone, pair):
            assert_close(state, whole[i : i + 1], 1e-12)


BAD = {
    ("bdia", "must be a number from 0 to 1"): ({"gamma": 1.5}, 8),
    ("bdia", "gamma 0 over 8 steps"): ({"gamma": 0.0}, 8),
    ("bdia", "gamma 0.5 over 15 steps: .*fewer steps"): ({"gamma": 0.5}, 15),
    ("edict", "p 0.93 over 64 steps: .*fewer steps"): ({}, 64),
    ("bdia", r"sigmas has 1 step\(s\) and BDIA inverts 2 or more"): ({}, 1),
}


@pytest.mark.parametrize(("key", "message"), BAD)
def test_what_cannot_be_inverted_is_refused_without_a_call(key, message):
    knobs, n = BAD[key, message]
    with pytest.raises(ValueError, match=message):
        SOLVERS[key].invert(None, torch.zeros(1, 2, 3, 2), sigmas_of("eps", n), path=EPS, **knobs)


@every_key
def test_bad_sigmas_are_refused_without_a_call(key):
    bad = {"sigmas has 0 value": [], "must fall strictly": [1.0, 0.0, 0.0], "sigmas.0. is 0 and": [0.0, 0.5, 1.0], "nan": [1.0, float("nan"), 0]}
    for message, sigmas in bad.items():
        with pytest.raises(ValueError, match=message):
            SOLVERS[key].invert(None, torch.zeros(1, 2, 3, 2), number(sigmas), path=EPS)
    with pytest.raises(ValueError, match="on a flow model a noise level is at most 1"):
        SOLVERS[key].invert(None, torch.zeros(1, 2, 3, 2), number([14.0, 1.0, 0.0]), path=FLOW)
