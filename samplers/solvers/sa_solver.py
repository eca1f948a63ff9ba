"""SA-Solver: stochastic Adams. Xue et al. 2023, arXiv:2309.05019, equations 15 and 18, data prediction.

An SDE whose noise tau may change along the run, solved as a linear multistep method: between lam and lam',
``x' = sigma'/sigma exp(-tau^2 h) x + alpha' (1 + tau^2) integral of exp((1 + tau^2) (u - lam')) denoised(u) du
+ sigma' sqrt(1 - exp(-2 tau^2 h)) n``, h = lam' - lam. The predictor takes denoised as the polynomial through past
predictions, the corrector through the prediction at the end of the step too, with the same noise.
"""

from math import exp, expm1, inf, sqrt

import torch

from ..core import Knob, denoiser, march
from ..noise import from_seed
from .phi import exact_weights, total
from .renoise import check_range
from .solver import Solver


def sample_sa_solver(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, predictor_order=3,
    corrector_order=4, tau=1.0, tau_end=-1.0, sde_from=1.0, sde_to=0.05, pece=False,
):  # fmt: skip
    """Order min(predictor_order + 1, corrector_order) at tau 0, or predictor_order with corrector_order 0.

    As published, orders fall over the last steps of a run to sigma 0. At sigma 1 of a flow lam is infinite: the prediction made
    there counts as made at the path's first finite lam, and as constant before it. With tau, that step draws all noise anew.
    """
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    check_range("sde_to", sde_to, "sde_from", sde_from)
    denoise = denoiser(model, extra_args)
    levels = sigmas.cpu().double()
    steps = plan(path, levels, predictor_order, corrector_order, taus(path, levels, tau, tau_end, sde_from, sde_to))
    history, start, noise = [], None, 0  # denoised, newest first; where the last step started, and its noise

    def step(i, x, denoised, sigma, sigma_next):
        nonlocal start, noise
        history.insert(0, denoised)
        del history[max(predictor_order, corrector_order) :]
        if i and steps[i - 1]["corrector"]:
            x = steps[i - 1]["carry"] * start + total(steps[i - 1]["corrector"], history) + noise
            if pece:
                history[0] = denoise(x, sigma)
        start, now = x, steps[i]
        noise = now["fresh"] * noise_sampler(sigma, sigma_next) if now["fresh"] else 0
        return now["carry"] * x + total(now["predictor"], history) + noise

    return march(step, model, x, sigmas, extra_args, callback)


def taus(path, sigmas, tau, tau_end, sde_from, sde_to):
    """tau of each step: 0 but for steps that end between sde_to and sde_from, where it goes evenly in lam to tau_end.

    tau_end below 0 is tau.
    """
    tau_end = tau if tau_end < 0 else tau_end
    ends = sigmas[1:]
    inside = (ends >= sde_to) & (ends <= sde_from) & (ends > 0)
    lam = path.lam(ends[inside])
    share = (lam - lam[:1]) / (lam[-1:] - lam[:1]) if len(lam) > 1 else torch.zeros_like(lam)
    values = torch.zeros_like(ends)
    values[inside] = tau + (tau_end - tau) * share
    return values.tolist()


def plan(path, sigmas, predictor_order, corrector_order, taus):
    """Per step but one to sigma 0: carry, fresh (the noise's size), and the weights of predictor and corrector, newest first.

    sigmas: CPU, float64.
    """
    lam, alpha = path.lam(path.offset_first(sigmas)), path.alpha(sigmas)
    from_noise = bool(alpha[0] == 0)
    ends_clean = bool(sigmas[-1] == 0)
    count = len(sigmas) - 1
    steps = []
    for i in range(count - ends_clean):
        left = count - i - 1 if ends_clean else inf  # further steps
        tau2 = taus[i] ** 2
        h = inf if from_noise and i == 0 else float(lam[i + 1] - lam[i])
        decay = tau2 * h if tau2 else 0.0
        args = lam, float(alpha[i + 1]), i, 1 + tau2, h == inf
        steps.append({
            "carry": float(sigmas[i + 1] / sigmas[i]) * exp(-decay),
            "fresh": float(sigmas[i + 1]) * sqrt(-expm1(-2 * decay)),
            "predictor": weights(*args, i, min(predictor_order, i + 1, left)),
            "corrector": weights(*args, i + 1, min(corrector_order, i + 2, left)),
        })  # fmt: skip
    return steps


def weights(lam, alpha_next, i, rate, from_noise, newest, count):
    """Of ``count`` predictions, newest first: alpha' rate * integral over step i of exp(rate (u - lam')) times each one's
    Lagrange polynomial. from_noise: the step begins at lam = -inf, and the oldest prediction holds up to lam[i].
    """
    if count == 0:
        return []
    h = float(lam[i + 1] - lam[i])
    nodes = (lam[newest + 1 - count : newest + 1].flip(0) - lam[i]) / h
    found = [alpha_next * rate * h * weight for weight in exact_weights(nodes.tolist(), -rate * h)]
    if from_noise:
        found[-1] += alpha_next * exp(-rate * h)
    return found


def declared_order(knobs):
    predictor, corrector = knobs["predictor_order"], knobs["corrector_order"]
    return min(predictor + 1, corrector) if corrector else predictor


def count_calls(n, knobs):
    return n + max(n - 2, 0) * bool(knobs["pece"] and knobs["corrector_order"])


SOLVERS = {
    "sa_solver": Solver(
        sample_sa_solver, "stochastic", "SA-Solver", declared_order, 1, True,
        "Xue et al. 2023, arXiv:2309.05019",
        "stochastic sampling in 15 to 50 steps, one model call each; as core's, with a tau that may change along the run",
        (
            Knob("tau", 1.0, "Strength of the noise. 0 = none, an ODE solver; 1 = the usual SDE.", min=0.0, max=3.0, step=0.05),
            Knob(
                "tau_end", -1.0, "Strength of the noise at the last step that draws some; from tau it goes there evenly in "
                "log signal-to-noise. Neutral: -1, tau throughout.", min=-1.0, max=3.0, step=0.05,
            ),
            Knob("sde_from", 1.0, "Steps that end above this noise level draw no noise. 1000 = no limit.", min=0.0, max=1000.0, step=0.01),
            Knob("sde_to", 0.05, "Steps that end below this noise level draw no noise. 0 = no limit.", min=0.0, max=1000.0, step=0.01),
            Knob("predictor_order", 3, "Predictions a step is extrapolated from. With corrector_order 0 and no noise, 1 = Euler.", min=1, max=4, step=1),
            Knob(
                "corrector_order", 4, "Predictions a step is redone from once the next one is known. 0 = no correction.",
                min=0, max=4, step=1,
            ),
            Knob(
                "pece", False, "Call the model again after each correction: twice the calls, steadier at high tau.",
                advanced=True,
            ),
        ),
        calls=count_calls,
        looks_back=lambda knobs: {name: knobs[name] for name in ("predictor_order", "corrector_order")},
    ),
}
