"""A rule of its own for every step: the mechanism of USF. Liu et al. 2023, arXiv:2312.07243.

A rule says what is extrapolated (noise, data or slope), by how high a polynomial through past predictions, with which weights,
and whether the prediction at the step's end then corrects the step, at no extra call. Rules share one history, so that any
may follow any. Fixed rules are known solvers: order 1 is Euler; data of order 2 DPM-Solver++(2M); noise of order 2 and 3
DPM-Solver, multistep; slope Adams-Bashforth, that is ipndm with true step lengths and, on VE paths, DEIS (rho AB); data with the
corrector UniPC.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise, repeat
from math import factorial, isfinite

import torch

from ..core import Knob, complete, denoiser, to_d
from .phi import phi
from .solver import Solver

MOST_ORDER = 4
PREDICTIONS = ("data", "noise", "slope")
WEIGHTS = ("exact", "dpm_solver")


@dataclass(frozen=True)
class Rule:
    """One step's. Plain values, so that ``asdict`` is JSON and ``Rule(**values)`` is back.

    prediction: "data" and "noise" are integrated exactly in log(alpha / sigma), by exponential integrators; "slope", dx/dsigma,
    in sigma. order: predictions in use; fewer where the history is still shorter. weights "dpm_solver": those that DPM-Solver
    publishes at order 2 and 3, not the polynomial's own. ValueError on what is not among these.
    """

    prediction: str = "data"
    order: int = 2
    corrector: bool = False
    weights: str = "exact"

    def __post_init__(self):
        complete(KNOBS, asdict(self))
        if self.weights != "exact" and (self.prediction == "slope" or self.order > 3):
            raise ValueError(
                f"weights is {self.weights!r} with prediction {self.prediction!r} and order {self.order}: DPM-Solver has them for "
                "noise and data up to order 3. Choose exact."
            )


def sample_per_step(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, prediction="data", order=2, corrector=False,
    weights="exact", recipe: Sequence[Rule] = (),
):
    """recipe holds the rules of the first steps, one a step; the knobs are the rule of all others. ValueError if it is longer.

    Each step is Euler's plus weights that sum to 0 over the predictions in history: nothing large cancels near sigma 1 of a flow.
    Predictions from sigma 1 of a flow, infinitely far in log(alpha / sigma), take no part in later "data" and "noise" steps.
    """
    steps = len(sigmas) - 1
    if len(recipe) > steps:
        raise ValueError(f"recipe has rules for {len(recipe)} steps and sigmas has {steps}: shorten it, or give more steps.")
    later = Rule(prediction, order, corrector, weights)
    rules = [rule for rule, _ in zip(chain(recipe, repeat(later)), range(steps))]
    exact = sigmas.cpu().double()
    predicting = [step_weights(path, exact, i, rule, ahead=0) for i, rule in enumerate(rules)]
    correcting = [step_weights(path, exact, i, rule, ahead=1) if rule.corrector else None for i, rule in enumerate(rules)]
    longest = max(map(len, predicting))
    kinds = {rule.prediction for rule in rules}

    denoise = denoiser(model, extra_args)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sigmas = sigmas.to(x)
    ends_clean = bool(sigmas[-1] == 0)
    history, base = [], None  # predictions newest first; where Euler's part of the step before ended
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        d = to_d(x, sigma, denoised)
        history.insert(0, predictions(kinds, path, denoised, d))
        euler = x + (sigma_next - sigma) * d
        if i and correcting[i - 1] is not None:
            corrected = base + combine(correcting[i - 1], history, rules[i - 1].prediction)
            euler = euler + carry(path, sigma, sigma_next, rules[i].prediction) * (corrected - x)
            x = corrected
        del history[longest:]
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        if i == steps - 1 and ends_clean:
            return denoised
        base = euler
        x = base + combine(predicting[i], history, rules[i].prediction)
    return x


def carry(path, sigma, sigma_next, kind):
    """How much of a change of x reaches the step's end while the prediction, made before the change, stays."""
    if kind == "slope":
        return 1.0
    return sigma_next / sigma if kind == "data" else path.alpha(sigma_next) / path.alpha(sigma)


def predictions(kinds, path, denoised, d):
    """What the rules of this run extrapolate, of one model call."""
    values = {"data": denoised, "slope": d, "noise": d + denoised if path.is_flow else d}
    return {kind: values[kind] for kind in kinds}


def combine(weights, history, kind):
    return sum(weight * past[kind] for weight, past in zip(weights.to(history[0][kind]), history))


def step_weights(path, sigmas, i, rule, ahead):
    """Weights of the predictions at i, i - 1, ..., beyond Euler's step from i. CPU, float64. They sum to 0.

    With ahead 1, one more comes first: the prediction at the step's end. Zeros where the step allows no order above Euler's.
    """
    axis = sigmas if rule.prediction == "slope" else path.lam(sigmas)
    used = [j for j in range(i, max(i - rule.order, -1), -1) if axis[j].isfinite()]
    h = float(axis[i + 1] - axis[i])
    if not isfinite(h) or len(used) + ahead < 2:
        return torch.zeros(1 + ahead, dtype=torch.float64)
    z, scale = {
        "data": (-h, path.alpha(sigmas[i + 1])), "noise": (h, -sigmas[i + 1]), "slope": (0.0, torch.ones_like(sigmas[0])),
    }[rule.prediction]  # fmt: skip
    nodes = (axis[[i + 1] * ahead + used] - axis[i]) / h
    moments = [0.0, *(factorial(k) * phi(k + 1, z) for k in range(1, len(nodes)))]  # of ((lam - lam_i) / h)^k
    if rule.weights == "dpm_solver" and not ahead:
        moments[-1] = phi(1, z) / 2 if len(nodes) == 2 else phi(3, z)
    powers = nodes ** torch.arange(len(nodes))[:, None]
    return scale * h * torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64))


KNOBS = (
    Knob(
        "prediction", "data", "What is extrapolated from step to step. data: the clean latent, as DPM-Solver++ and UniPC. noise: "
        "the noise, as DPM-Solver and, in another variable, DEIS. slope: dx/dsigma, as ipndm; the velocity on flow models.",
        options=PREDICTIONS,
    ),
    Knob("order", 2, "How many predictions to use. 1 = Euler.", min=1, max=MOST_ORDER, step=1),
    Knob(
        "corrector", False, "Redo each step with the prediction at its end, which is made anyway: one order more, as UniPC. "
        "Off = as most solvers.",
    ),
    Knob(
        "weights", "exact", "exact: those of the polynomial. dpm_solver: the published ones of DPM-Solver (2M and 3M), which "
        "differ slightly.", options=WEIGHTS, advanced=True,
    ),
)

SOLVERS = {
    "per_step": Solver(
        sample_per_step, "per_step", "Rules per step",
        lambda knobs: min(knobs["order"], 2 if knobs["weights"] == "dpm_solver" else MOST_ORDER) + knobs["corrector"], 1, False,
        "Liu et al. 2023, arXiv:2312.07243",
        "finding the best of a family of solvers for one model, and changing it on the way",
        KNOBS,
        looks_back=lambda knobs: {"order": knobs["order"]},
    ),
}
