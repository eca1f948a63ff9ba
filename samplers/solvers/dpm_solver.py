"""DPM-Solver on noise, Lu et al. 2022, arXiv:2206.00927, and DPM-Solver++ on data, Lu et al. 2022, arXiv:2211.01095."""

from math import prod

from ..core import Knob, march
from .exp_rk import calls, runge_kutta
from .phi import FLOW_TIME, exact_weights, multistep, phi, total
from .solver import Solver
from .tableaus import euler, midpoint_2s, res_2s, res_3s


def sample_dpm_solver(model, x, sigmas, extra_args=None, callback=None, disable=None, *, order=3, path):
    """Singlestep DPM-Solver-1, -2, -3, the paper's algorithms 1 and 2, with its r1 = 1/2, and r1 = 1/3, r2 = 2/3.

    A step from sigma 1 of a flow, or from above ``path.sigma_first``, with no signal to scale, is the same method on data.
    """
    tableau = {1: euler, 2: lambda: midpoint_2s(1 / 2), 3: lambda: res_3s(1 / 3)}[order]()
    return runge_kutta(tableau, model, x, sigmas, extra_args, callback, path, noise_form=True)


def sample_dpm_solver_pp(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, order=2, mode="multistep", weights="published",
    lower_order_final=True, flow_time="lambda", path,
):  # fmt: skip
    """DPM-Solver++(2M), (3M) with history, (2S), (3S) without. Multistep starts at order 1."""
    exact = weights == "exact"
    if mode == "singlestep":
        tableau = {1: euler, 2: lambda: (res_2s if exact else midpoint_2s)(1 / 2), 3: lambda: res_3s(1 / 3)}[order]()
        return runge_kutta(tableau, model, x, sigmas, extra_args, callback, path, flow_time)
    weigh = exact_weights if exact else published_weights
    plans = multistep(path, sigmas.cpu().double(), order, flow_time, lower_order_final)
    plans = [plan and (plan[0], [plan[1] * plan[2] * w for w in weigh(plan[3], -plan[2])]) for plan in plans]
    history = []  # newest first

    def step(i, x, denoised, sigma, sigma_next):
        history.insert(0, denoised)
        del history[order:]
        carry, newest_first = plans[i]
        return carry * x + total(newest_first, history)

    return march(step, model, x, sigmas, extra_args, callback)


def published_weights(nodes, z):
    """Of the last one to three predictions, at nodes 0 and below, as the paper's code has them.

    Order 2 has phi_1 / 2 for phi_2. Order 3 has half the exact share of the second difference, so its order is 2.
    """
    if len(nodes) == 2:
        slope = phi(1, z) / 2 / nodes[1]
        return [phi(1, z) - slope, slope]
    exact = exact_weights(nodes, z)
    if len(nodes) < 3:
        return exact
    differences = (1 / prod(node - other for other in nodes if other != node) for node in nodes)
    return [weight - phi(3, z) * difference for weight, difference in zip(exact, differences)]


def order_of_pp(knobs):
    short = knobs["mode"] == "multistep" and knobs["weights"] == "published"
    return min(knobs["order"], 2) if short else knobs["order"]


SOLVERS = {
    "dpm_solver": Solver(
        sample_dpm_solver, "exponential", "DPM-Solver (singlestep)", lambda knobs: knobs["order"], 3, False,
        "Lu et al. 2022, arXiv:2206.00927",
        "unguided sampling and low CFG; with guidance take dpm_solver_pp",
        (
            Knob(
                "order", 3, "Order of accuracy, and model calls per step: 3 at 7 steps is 19 calls. 1 = DDIM, the same as Euler.",
                min=1, max=3, step=1,
            ),
        ),
        lambda steps, knobs: calls(steps, knobs["order"]),
    ),
    "dpm_solver_pp": Solver(
        sample_dpm_solver_pp, "exponential", "DPM-Solver++", order_of_pp, 1, False,
        "Lu et al. 2022, arXiv:2211.01095",
        "guided sampling at 10 to 25 steps; order 2 multistep is core's dpmpp_2m",
        (
            Knob(
                "order", 2, "2 is the steady choice, 3 is for low CFG and smooth schedules. 1 = DDIM, the same as Euler.",
                min=1, max=3, step=1,
            ),
            Knob(
                "mode", "multistep", "multistep (2M, 3M): one model call a step, with the help of earlier steps. singlestep (2S, "
                "3S): as many calls a step as the order, no history.", options=("multistep", "singlestep"),
            ),
            Knob(
                "weights", "published", "published = the paper's code, whose order 3 multistep is of second order only. exact = the "
                "polynomial through the predictions, integrated exactly: order 2 is then core's res_multistep, order 3 a "
                "true one. Same at order 1 and for 3S.", options=("published", "exact"), advanced=True,
            ),
            Knob(
                "lower_order_final", True, "Multistep: lower the order over the last steps of a run that ends at sigma 0, which "
                "is steadier with few steps. Only order 3 has steps to lower.", advanced=True,
            ),
            FLOW_TIME,
        ),
        lambda steps, knobs: calls(steps, knobs["order"] if knobs["mode"] == "singlestep" else 1),
        looks_back=lambda knobs: {"order": knobs["order"]} if knobs["mode"] == "multistep" else {},
    ),
}  # fmt: skip
