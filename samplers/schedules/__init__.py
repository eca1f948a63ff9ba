"""Every schedule, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from ..core import Knob, check_sigmas, complete, takes, with_path
from .uniform_lambda import uniform_lambda


@dataclass(frozen=True)
class Schedule:
    """``schedule(n, sigma_min, sigma_max, path=path)``: n + 1 falling float32 sigmas, first sigma_max, last 0."""

    sigmas: Callable
    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...] = ()

    @property
    def needs_path(self):
        return takes(self.sigmas, "path")

    def __call__(self, n, sigma_min, sigma_max, *, path=None, **knobs):
        settings = complete(self.knobs, knobs)
        if n < 1:
            raise ValueError(f"n is {n}: a schedule needs at least 1 step.")
        if not (isfinite(sigma_max) and 0 < sigma_min < sigma_max):
            raise ValueError(f"sigma_min is {sigma_min:g}, sigma_max {sigma_max:g}: need 0 < sigma_min < sigma_max, finite.")
        if self.needs_path:
            settings["path"] = with_path(self.title, path, "sigma_max", sigma_max)
        sigmas = self.sigmas(n, sigma_min, sigma_max, **settings).float()
        check_sigmas(sigmas)
        return sigmas


SCHEDULES = {
    "uniform_lambda": Schedule(
        uniform_lambda, "Uniform lambda", "Lu et al. 2022, arXiv:2206.00927",
        "exponential integrators (DPM-Solver and kin), and small details at 15 steps and more",
    ),
}
