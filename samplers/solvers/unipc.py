"""UniPC: unified predictor-corrector. Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8, data prediction.

The predictor is the exponential Adams-Bashforth step. The corrector redoes a step once the model has been called at its
end, at no further call. B(h), the choice of bh1 or bh2, only enters where the paper replaces a weight by 1/2: in the
predictor of order 2 and the corrector of order 1. Elsewhere it cancels.
"""

from math import expm1

from ..core import Knob, march
from .phi import FLOW_TIME, exact_weights, multistep, total
from .solver import Solver


def sample_unipc(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, order=2, variant="bh2", corrector=True,
    lower_order_final=True, flow_time="lambda", path,
):  # fmt: skip
    """Order ``order``, one more with the corrector. The first step is Euler's, corrected or not."""
    steps = multistep(path, sigmas.cpu().double(), order, flow_time, lower_order_final)
    predictors = [step and predictor(variant, *step) for step in steps]
    correctors = [step and corrected(variant, *step) for step in steps]
    history, start = [], x  # denoised, newest first; where the last step started

    def step(i, x, denoised, sigma, sigma_next):
        nonlocal start
        if i and corrector:
            carry, weights = correctors[i - 1]
            x = carry * start + total(weights, [denoised, *history])
        history.insert(0, denoised)
        del history[order:]
        start = x
        carry, weights = predictors[i]
        return carry * x + total(weights, history)

    return march(step, model, x, sigmas, extra_args, callback)


def predictor(variant, carry, gain, h, nodes):
    if len(nodes) == 2:
        return carry, [gain * weight for weight in simplified(variant, h, nodes[1])]
    return carry, [gain * h * weight for weight in exact_weights(nodes, -h)]


def corrected(variant, carry, gain, h, nodes):
    """As ``predictor``, with the prediction at the end of the step as the newest."""
    if len(nodes) == 1:
        return carry, [gain * weight for weight in reversed(simplified(variant, h, 1.0))]
    return carry, [gain * h * weight for weight in exact_weights([1.0, *nodes], -h)]


def simplified(variant, h, node):
    """Weights of the present prediction and of the one at ``node``, with half of B(h) for the slope between them."""
    slope = {"bh1": h, "bh2": -expm1(-h)}[variant] / 2 / node
    return [-expm1(-h) - slope, slope]


SOLVERS = {
    "unipc": Solver(
        sample_unipc, "exponential", "UniPC", lambda knobs: knobs["order"] + knobs["corrector"], 1, False,
        "Zhao et al. 2023, arXiv:2302.04867",
        "5 to 12 steps; the corrector gains an order without a further model call",
        (
            Knob(
                "order", 2, "How many predictions a step uses. 1 with the corrector off = Euler. 2 is the steady choice at high "
                "CFG; 3 and 4 are for low CFG and smooth schedules.", min=1, max=4, step=1,
            ),
            Knob(
                "variant", "bh2", "The published choice of B(h). Only order 2 and the second step differ: bh2 suits guided "
                "sampling, bh1 unguided sampling at very few steps.", options=("bh1", "bh2"),
            ),
            Knob(
                "corrector", True, "Redo each step with the prediction made at its end, which the next step needs anyway. Off = "
                "predictor only.",
            ),
            Knob(
                "lower_order_final", True, "Lower the order over the last steps of a run that ends at sigma 0, which is "
                "steadier with few steps. Changes nothing at orders 1 and 2.", advanced=True,
            ),
            FLOW_TIME,
        ),
        looks_back=lambda knobs: {"order": knobs["order"]},
    ),
}  # fmt: skip
