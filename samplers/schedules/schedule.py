"""What a schedule declares, how it is called, and what several of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch

from ..core import Knob, check_sigmas, complete, takes, with_path

SUPPLIED = {  # what a schedule may ask for in its signature -> the remedy where there is none
    "table": "the model's noise levels at its timesteps, and this model has none: it was trained on continuous noise levels. "
    "Use edm_rho or uniform_lambda",
    "tokens": "the size of the picture. Connect latent, the latent that will be sampled",
}


@dataclass(frozen=True)
class Schedule:
    """``schedule(n, sigma_min, sigma_max, ...)``: n + 1 falling float32 sigmas, the last 0.

    ``sigmas`` gets, where its signature has them: path; table, the model's noise levels at its timesteps, (T,), rising,
    float64; tokens, how many tokens the model's transformer makes of one latent. The first value is sigma_max and the last
    before 0 is sigma_min, except where a method that asks for table or tokens sets them otherwise.
    """

    sigmas: Callable
    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...] = ()

    @property
    def needs_path(self):
        return takes(self.sigmas, "path")

    @property
    def needs_table(self):
        return takes(self.sigmas, "table")

    @property
    def needs_tokens(self):
        return takes(self.sigmas, "tokens")

    def __call__(self, n, sigma_min, sigma_max, *, path=None, table=None, tokens=None, **knobs):
        settings = complete(self.knobs, knobs)
        if n < 1:
            raise ValueError(f"n is {n}: a schedule needs at least 1 step.")
        if not (isfinite(sigma_max) and 0 < sigma_min < sigma_max):
            raise ValueError(f"sigma_min is {sigma_min:g}, sigma_max {sigma_max:g}: need 0 < sigma_min < sigma_max, finite.")
        if self.needs_path:
            settings["path"] = with_path(self.title, path, "sigma_max", sigma_max)
        for name, given in (("table", table), ("tokens", tokens)):
            if takes(self.sigmas, name):
                if given is None:
                    raise ValueError(f"{self.title} needs {name}=: {SUPPLIED[name]}.")
                settings[name] = given
        sigmas = self.sigmas(n, sigma_min, sigma_max, **settings).float()
        check_sigmas(sigmas)
        return sigmas


def noise_over_signal(sigmas, path):
    """sigma / alpha, the sigma of the VE image, of a list of levels: float64, infinite at sigma 1 of a flow."""
    sigmas = torch.tensor(sigmas, dtype=torch.float64)
    return sigmas / path.alpha(sigmas)


def level_at(ratio, path):
    """The noise level whose noise over signal is ``ratio``; any number of them, 0 and infinity among them."""
    return path.sigma(-ratio.log())


def with_ends(levels, sigma_min, sigma_max):
    """levels (n,) with its first put at sigma_max and its last at sigma_min, exactly, and a 0 behind."""
    return torch.cat([levels.new_tensor([sigma_max]), levels[1:-1], levels.new_tensor([sigma_min] * (len(levels) > 1) + [0.0])])
