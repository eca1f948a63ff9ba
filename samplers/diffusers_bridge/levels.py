"""Where a scheduler calls its network: at which noise level, in which coordinates, and what it wants to be told."""

import math
from dataclasses import dataclass

import torch

from .catalogue import USABLE

PURE = 1000.0  # sigma from which on a level counts as noise alone: models with a zero terminal SNR have 4518, schedulers 4096 or inf


@dataclass(frozen=True)
class Call:
    """One call of the network. Its state is size (alpha x0 + sigma eps), with alpha^2 + sigma^2 = 1.

    index: of the scheduler's own list. step: which of SIGMAS' steps it is part of; starts: whether it is the first of that.
    """

    timestep: torch.Tensor
    index: int
    step: int
    starts: bool
    alpha: float
    sigma: float
    size: float

    @property
    def ve(self):
        """The noise level where alpha is 1; inf for noise alone."""
        return self.sigma / self.alpha if self.alpha > 1e-12 else math.inf


def is_flow(name, scheduler):
    return USABLE[name].state == "flow" or (USABLE[name].state == "vp" and bool(scheduler.config.get("use_flow_sigmas")))


def calls_of(name, scheduler):
    """Every call of a run, in order, after ``set_timesteps``."""
    timesteps = scheduler.timesteps
    if USABLE[name].state == "trigflow" or (name == "LTXEulerAncestralRFScheduler" and len(timesteps) == len(scheduler.sigmas)):
        timesteps = timesteps[:-1]  # the last is clean, and its step changes nothing
    steps = _steps(name, scheduler, len(timesteps))
    calls = []
    for index, (timestep, step) in enumerate(zip(timesteps, steps, strict=True)):
        alpha, sigma, scale = _mixture(name, scheduler, index, timestep)
        norm = math.hypot(alpha, sigma)
        starts = index == 0 or steps[index - 1] != step
        calls.append(Call(timestep, index, step, starts, max(alpha, 0.0) / norm, sigma / norm, scale * norm))
    return calls


def _steps(name, scheduler, count):
    """For each call, the step that it is part of."""
    if USABLE[name].calls == "pair":
        return [index // 2 for index in range(count)]
    if USABLE[name].calls == "pndm":
        if not scheduler.config.skip_prk_steps:  # Runge-Kutta first: three steps of four calls
            return [index // 4 if index < 12 else index - 9 for index in range(count)]
        return [max(index - 1, 0) for index in range(count)]  # the first step is repeated with the slope at its end
    return list(range(count))


def _mixture(name, scheduler, index, timestep):
    """(alpha, sigma, scale) of the state at this call: scale (alpha x0 + sigma eps)."""
    state = USABLE[name].state
    if state == "table":
        kept = float(scheduler.alphas_cumprod[int(timestep)].double())
        return math.sqrt(kept), math.sqrt(1 - kept), 1.0
    if state == "trigflow":
        angle = float(timestep)
        return math.cos(angle), math.sin(angle), float(scheduler.config.sigma_data)
    if state == "crash":
        return float(scheduler.alphas[index]), float(scheduler.betas[index]), 1.0
    sigma = _sigma(name, scheduler, index)
    if is_flow(name, scheduler):
        return 1 - sigma, sigma, 1.0
    if state == "vp":
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma), 1.0
    return 1.0, sigma, 1.0


def _sigma(name, scheduler, index):
    """Schedulers with two calls a step make the second where they say, not at the step's own level."""
    sigmas = scheduler.sigmas
    if index % 2 and name == "KDPM2DiscreteScheduler":
        return float(scheduler.sigmas_interpol[index])
    if index % 2 and name == "KDPM2AncestralDiscreteScheduler":
        return float(scheduler.sigmas_interpol[index - 1])
    if index % 2 and name == "DPMSolverSDEScheduler":
        return math.sqrt(float(sigmas[index - 1]) * float(sigmas[index]))
    return float(sigmas[index])


@dataclass(frozen=True)
class Level:
    """Where the MODEL is called for a ``Call``: x = gain (alpha x0 + sigma eps), at noise level ``at`` of its own."""

    alpha: float
    sigma: float
    gain: float
    at: float


def level_for(call, path, sigma_max):
    """The MODEL's level for a call; for noise alone, its own noisiest one."""
    ratio = call.ve
    if path.is_flow:
        total = call.alpha + call.sigma
        return Level(call.alpha, call.sigma, 1 / total, call.sigma / total)
    if ratio > sigma_max and (sigma_max >= PURE or ratio <= sigma_max * 1.001):
        ratio = sigma_max
    norm = math.hypot(1, ratio)
    return Level(1 / norm, ratio / norm, norm, ratio)


def output(name, scheduler, call, level, state, x0):
    """What the network would have answered, as the scheduler wants it told. state in the scheduler's coordinates.

    state and x0 give the noise; by prediction_type that is told as noise, as velocity, as the clean latent or preconditioned.
    """
    kind = USABLE[name].state
    if kind == "edm":
        sigma = scheduler.sigmas[call.index]
        skip, out = (float(scheduler.precondition_outputs(a, b, sigma)) for a, b in ((1.0, 0.0), (0.0, 1.0)))
        return (x0 - skip * state) / out
    if kind == "consistency":
        skip, out = map(float, scheduler.get_scalings_for_boundary_condition(scheduler.sigmas[call.index]))
        return (x0 - skip * state) / out if out else torch.zeros_like(state)  # at sigma_min the output is not used
    if kind == "trigflow":
        angle, scale = float(call.timestep), call.size
        return (math.cos(angle) * state - scale * x0) / math.sin(angle)
    noise = (state / call.size - level.alpha * x0) / level.sigma
    if name == "MiniMaxH3Scheduler":
        return x0 - noise
    if is_flow(name, scheduler):
        kind = scheduler.config.get("prediction_type", "flow_prediction")
    elif name == "IPNDMScheduler":
        kind = "v_prediction"
    else:
        kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return level.alpha * noise - level.sigma * x0
    return {"epsilon": noise, "flow_prediction": noise - x0, "sample": x0, "original_sample": x0}[kind]
