"""SA-Solver: stochastic Adams. Xue et al. 2023, arXiv:2309.05019, equations 15 and 18, data prediction.

An SDE whose noise tau may change along the run, solved as a linear multistep method: between lam and lam',
``x' = sigma'/sigma exp(-tau^2 h) x + alpha' (1 + tau^2) integral of exp((1 + tau^2) (u - lam')) denoised(u) du
+ sigma' sqrt(1 - exp(-2 tau^2 h)) n``, h = lam' - lam. The predictor takes denoised as the polynomial through past
predictions, the corrector through the prediction at the end of the step too, with the same noise.
"""

from math import exp, expm1, inf, sqrt

from ..core import Knob, denoiser, march
from .phi import exact_weights, total
from .renoise import check_range
from .solver import Solver


def sample_sa_solver(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler, predictor_order=3,
    corrector_order=4, tau=1.0, sde_from=1.0, sde_to=0.05, pece=False,
):  # fmt: skip
    """Order min(predictor_order + 1, corrector_order) at tau 0, or predictor_order with corrector_order 0.

    As published, orders fall over the last steps of a run to sigma 0. A step from sigma 1 of a flow, whose lam is infinite, is
    of order 1 and not corrected: Euler at tau 0, all noise anew otherwise.
    """
    check_range("sde_to", sde_to, "sde_from", sde_from)
    denoise = denoiser(model, extra_args)
    steps = plan(path, sigmas.cpu().double(), predictor_order, corrector_order, tau, sde_from, sde_to)
    history, start, noise = [], x, 0  # denoised, newest first; where the last step started, and its noise

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


def plan(path, sigmas, predictor_order, corrector_order, tau, sde_from, sde_to):
    """Per step but one to sigma 0: carry, fresh (the noise's size), and the weights of predictor and corrector, newest first.

    sigmas: CPU, float64. tau acts in steps that end between sde_to and sde_from.
    """
    lam, alpha = path.lam(sigmas), path.alpha(sigmas)
    ends_clean = bool(sigmas[-1] == 0)
    count = len(sigmas) - 1
    steps = []
    for i in range(count - ends_clean):
        left = count - i - 1 if ends_clean else inf  # further steps
        tau2 = tau**2 if sde_to <= sigmas[i + 1] <= sde_from else 0.0
        h = float(lam[i + 1] - lam[i])
        decay = tau2 * h if tau2 else 0.0
        correct = 0 if h == inf else min(corrector_order, i + 2, left)
        steps.append({
            "carry": float(sigmas[i + 1] / sigmas[i]) * exp(-decay),
            "fresh": float(sigmas[i + 1]) * sqrt(-expm1(-2 * decay)),
            "predictor": weights(lam, alpha, i, i, min(predictor_order, i + 1, left), 1 + tau2),
            "corrector": weights(lam, alpha, i, i + 1, correct, 1 + tau2) if correct else [],
        })  # fmt: skip
    return steps


def weights(lam, alpha, i, newest, count, rate):
    """Of ``count`` predictions, newest first: alpha' rate * integral over step i of exp(rate (u - lam')) times each one's
    Lagrange polynomial. Predictions made at infinite lam are left out, but for the step that starts there.
    """
    h = lam[i + 1] - lam[i]
    if h == inf:
        return [float(alpha[i + 1])]
    nodes = (lam[newest + 1 - count : newest + 1].flip(0) - lam[i]) / h
    scale = float(alpha[i + 1] * rate * h)
    return [scale * weight for weight in exact_weights(nodes[nodes.isfinite()].tolist(), -rate * float(h))]


def declared_order(knobs):
    predictor, corrector = knobs["predictor_order"], knobs["corrector_order"]
    return min(predictor + 1, corrector) if corrector else predictor


def count_calls(n, knobs):
    return n + max(n - 2, 0) * bool(knobs["pece"] and knobs["corrector_order"])


SOLVERS = {
    "sa_solver": Solver(
        sample_sa_solver, "stochastic", "SA-Solver", declared_order, 1, True,
        "Xue et al. 2023, arXiv:2309.05019",
        "stochastic sampling at 15 to 50 steps; exact at any number of steps, unlike core's sa_solver beyond 30",
        (
            Knob("tau", 1.0, "Strength of the noise. 0 = none, an ODE solver; 1 = the usual SDE.", min=0.0, max=3.0, step=0.05),
            Knob("sde_from", 1.0, "Steps that end above this noise level draw no noise. 1000 = no limit.", min=0.0, max=1000.0, step=0.01),
            Knob("sde_to", 0.05, "Steps that end below this noise level draw no noise. 0 = no limit.", min=0.0, max=1000.0, step=0.01),
            Knob("predictor_order", 3, "Predictions a step is extrapolated from. With corrector_order 0 and tau 0, 1 = Euler.", min=1, max=4, step=1),
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
    ),
}
