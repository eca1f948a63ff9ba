"""Exponential Runge-Kutta methods: several model calls a step, no history. The RES class, Zhang et al. 2023,
arXiv:2308.02157, with the tableaus of Hochbruck and Ostermann 2005, doi:10.1137/040611434, on the data form of ``phi``.
"""

from itertools import pairwise

from ..core import Knob, denoiser, march, predicted_noise
from .phi import FLOW_TIME, time_path, total
from .solver import Solver
from .tableaus import BY_NAME


def sample_exp_rk(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, tableau="res_2s", c2=0.5, flow_time="lambda", path
):
    """Order of the tableau. A step to sigma 0 ends on denoised, after one call."""
    return runge_kutta(BY_NAME[tableau](c2), model, x, sigmas, extra_args, callback, path, flow_time)


def runge_kutta(tableau, model, x, sigmas, extra_args, callback, path, flow_time="lambda", noise_form=False):
    """A run by one tableau, on either form of ``phi``."""
    denoise = denoiser(model, extra_args)
    steps = stages(tableau, path, sigmas.cpu().double(), flow_time, noise_form)

    def step(i, x, denoised, sigma, sigma_next):
        by_noise, rows = steps[i]
        start, stage, predictions = denoised if by_noise else x, x, []
        for stage_sigma, carry, weights in rows:
            if predictions:
                denoised = denoise(stage, sigma)
            predictions.append(predicted_noise(path, stage, denoised, sigma) if by_noise else denoised)
            stage = carry * start + total(weights, predictions)
            sigma = x.new_full((), stage_sigma)
        return stage

    return march(step, model, x, sigmas, extra_args, callback)


def stages(tableau, path, sigmas, flow_time, noise_form):
    """Per step, whether it goes by noise, and for each row of the tableau (sigma it leads to, carry, weights).

    carry is of x in the data form. In the noise form it is of denoised: x = alpha denoised + sigma eps is put in, so that
    no large numbers cancel near sigma 1 of a flow. Above sigma_first, where there is next to no signal to scale, the step
    goes by the data form.
    sigmas: CPU, float64.
    """
    steps = []
    for sigma, sigma_next in pairwise(sigmas[:-1] if sigmas[-1] == 0 else sigmas):
        by_noise = noise_form and not (path.is_flow and sigma > path.sigma_first)
        time = time_path(path, sigma, flow_time)
        lam, h = time.lam(sigma), float(time.lam(sigma_next) - time.lam(sigma))
        rows = []
        for row, c in enumerate((*tableau.nodes[1:], 1.0)):
            s = sigma_next if c == 1 else time.sigma(lam + c * h)
            carry = time.alpha(s) if by_noise else s / sigma
            gain = float(-s if by_noise else time.alpha(s)) * h
            weights = [gain * weight for weight in tableau.weights(row, h if by_noise else -h)]
            if by_noise:
                weights[0] += float(carry * sigma / time.alpha(sigma))
            rows.append((float(s), float(carry), weights))
        steps.append((by_noise, rows))
    return steps


def calls(steps, stages):
    """Of a run to sigma 0, whose last step needs one."""
    return (steps - 1) * stages + 1


SOLVERS = {
    "exp_rk": Solver(
        sample_exp_rk, "exponential", "Exponential Runge-Kutta (RES)",
        lambda knobs: BY_NAME[knobs["tableau"]](knobs["c2"]).order, 2, False, "Zhang et al. 2023, arXiv:2308.02157",
        "references and exact trajectories: high order without a start-up; 2 to 5 model calls a step",
        (
            Knob(
                "tableau", "res_2s", "The method. res_2s: order 2, 2 calls a step. res_3s and etd3rk: order 3, 3 calls. "
                "krogstad: order 4, 4 calls. res_5s (Hochbruck and Ostermann): order 4, 5 calls, steadier at long steps.",
                options=tuple(BY_NAME),
            ),
            Knob(
                "c2", 0.5, "Where in a step the second call lies, for res_2s and res_3s; the others fix it. 0.5 = the middle. "
                "1 with res_2s = exponential Heun, 0.333 with res_3s = DPM-Solver++(3S).",
                min=0.1, max=1.0, step=0.01, advanced=True,
            ),
            FLOW_TIME,
        ),
        lambda steps, knobs: calls(steps, len(BY_NAME[knobs["tableau"]](knobs["c2"]).nodes)),
    ),
}  # fmt: skip
