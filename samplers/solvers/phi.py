"""What exponential integrators share: phi functions, exact weights for past predictions, and the time they work in.

On every path, between sigma and sigma', with lam = log(alpha / sigma) and h = lam' - lam:
data   x' = sigma' / sigma x + alpha' h * integral over theta from 0 to 1 of exp(-(1 - theta) h) denoised,
noise  x' = alpha' / alpha x - sigma' h * integral over theta from 0 to 1 of exp(+(1 - theta) h) eps,
where denoised and eps are taken at lam + theta h. Lu et al. 2022, arXiv:2206.00927, equation 3.4 and arXiv:2211.01095,
equation 8. Coefficients are Python floats, made before the first model call.
"""

from itertools import pairwise
from math import exp, factorial, inf

import torch

from ..core import Knob
from ..path import Path

VE = Path("eps")
FLOW_TIME = Knob(
    "flow_time", "lambda", "For flow models only: the time in which predictions are interpolated. lambda = log signal-to-noise, "
    "as published; what is predicted at sigma 1, where it is infinite, counts for its own step alone. "
    "log_sigma = minus log sigma, as core's dpmpp_2m has it.",
    options=("lambda", "log_sigma"), advanced=True,
)


def phi(k, z):
    """phi_0 = exp; phi_k(z) = integral over theta in [0, 1] of exp((1 - theta) z) theta^(k - 1) / (k - 1)!.

    Hochbruck and Ostermann 2005, doi:10.1137/040611434, equations 2.5 and 2.6.
    """
    if abs(z) < 1:  # the recursion cancels
        return sum(z**n / factorial(n + k) for n in range(20))
    value = exp(z)
    for j in range(k):
        value = (value - 1 / factorial(j)) / z
    return value


def exact_weights(nodes, z):
    """Weights w: sum of w f(nodes) = integral of exp((1 - theta) z) p(theta), p the polynomial through f at the nodes."""
    powers = torch.tensor(nodes, dtype=torch.float64) ** torch.arange(len(nodes))[:, None]
    moments = [factorial(k) * phi(k + 1, z) for k in range(len(nodes))]
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()


def total(weights, predictions):
    return sum(weight * prediction for weight, prediction in zip(weights, predictions))


def time_path(path, sigma, flow_time):
    """The path whose lam is the time of a data-form step from sigma: the model's own, or VE.

    The data form is the same on VE for every path that has x = denoised at sigma 0, since only sigma' / sigma enters; its
    time is then -log sigma, which is finite at sigma 1 of a flow, where lam is not.
    """
    return VE if flow_time == "log_sigma" or path.lam(sigma) == -inf else path


def multistep(path, sigmas, order, flow_time, lower_order_final):
    """Per step, (carry, gain, h, nodes) of the data form: nodes, newest first, are the past times in h from the present.

    A step to sigma 0 ends on denoised: None. As many nodes as the order and the past allow; lower_order_final, which
    counts for runs to sigma 0 alone, allows no more than there are steps left. sigmas: CPU, float64.
    """
    steps = []
    count = len(sigmas) - 1
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if sigma_next == 0:
            steps.append(None)
            continue
        k = min(order, i + 1, count - i if lower_order_final and sigmas[-1] == 0 else order)
        time = time_path(path, sigma, flow_time)
        lam = time.lam(sigmas[i + 1 - k : i + 2]).flip(0)
        h = lam[0] - lam[1]
        nodes = (lam[1:] - lam[1]) / h
        carry, gain = sigma_next / sigma, time.alpha(sigma_next)
        steps.append((float(carry), float(gain), float(h), nodes[nodes.isfinite()].tolist()))
    return steps
