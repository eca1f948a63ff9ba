"""Every solver, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from ..core import Knob, check_sigmas, complete, needs_path, with_path
from .lambda_ddim import sample_lambda_ddim
from .momentum import sample_ghvb, sample_heavy_ball, sample_nesterov, split_order


@dataclass(frozen=True)
class Solver:
    """A solver as users meet it: checks their input, then calls ``sample``. Takes the place of a k-diffusion sampler."""

    sample: Callable
    family: str
    title: str
    order: Callable[[dict], int]  # of convergence on uneven steps, given all the knobs: order of accuracy in 1 / steps
    evaluations: int  # model calls per step
    stochastic: bool
    source: str
    good_for: str
    knobs: tuple[Knob, ...] = ()

    @property
    def needs_path(self):
        return needs_path(self.sample)

    def declared_order(self, **knobs):
        return self.order(complete(self.knobs, knobs))

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None, *, path=None, **knobs):
        check_sigmas(sigmas)
        settings = complete(self.knobs, knobs)
        if self.needs_path:
            settings["path"] = with_path(self.title, path, "sigmas[0]", sigmas[0])
        return self.sample(model, x, sigmas, extra_args, callback, disable, **settings)


MOMENTUM_SOURCE = "Wizadwongsa et al. 2023, arXiv:2307.11118"

MOMENTUM_KNOBS = (
    Knob(
        "order", 2.5, "How many past steps to use; the fraction sets the momentum, strongest just above a whole number. A "
        "whole number = no momentum: 1 is Euler, 2 to 4 are ipndm. The paper's useful range is 1.5 to 3.5.",
        min=0.1, max=5.0, step=0.1,
    ),
    Knob(
        "variable_step", False, "Weigh past steps by their real, uneven lengths, which orders above 2 need on most "
        "schedulers. Off = as published: every step counts as equally long.", advanced=True,
    ),
)


def adams_order(knobs):
    """Warm-up and uneven steps hold published weights, made for even steps, to order 2."""
    k, _ = split_order(knobs["order"])
    return k if knobs["variable_step"] else min(k, 2)


def averaged_order(knobs):
    _, beta = split_order(knobs["order"])
    return adams_order(knobs) if beta == 1 else 1


SOLVERS = {
    "ghvb": Solver(
        sample_ghvb, "momentum", "GHVB momentum", adams_order, 1, False, MOMENTUM_SOURCE,
        "few steps at high CFG, where multistep solvers ring; keeps their order",
        MOMENTUM_KNOBS,
    ),
    "heavy_ball": Solver(
        sample_heavy_ball, "momentum", "Heavy-ball momentum", averaged_order, 1, False, MOMENTUM_SOURCE,
        "few steps at high CFG; steadier than GHVB, but first order",
        MOMENTUM_KNOBS,
    ),
    "nesterov": Solver(
        sample_nesterov, "momentum", "Nesterov momentum", averaged_order, 1, False, MOMENTUM_SOURCE,
        "few steps at high CFG; first order, with less lag than heavy ball",
        MOMENTUM_KNOBS,
    ),
    "lambda_ddim": Solver(
        sample_lambda_ddim, "conjugate", "Lambda-DDIM", lambda knobs: 1, 1, False,
        "Pandey, Rudolph and Mandt 2023, arXiv:2310.07894",
        "tuning out part of Euler's error for one model, at 10 steps or fewer",
        (
            Knob(
                "lambda_c", 0.0, "Strength of the change of variable. 0 = DDIM, the same as Euler. Useful values are small "
                "and depend on the model: try -0.5 to 0.5. On flow models start at sigma 1, or well below it.",
                min=-1.0, max=1.0, step=0.01,
            ),
        ),
    ),
}
