"""What the exactly invertible solvers share: a state of two latents, and steps that can be undone to the last digit.

The state is float64 where the device has it, the model gets float32. Then a step and its undoing call the model on the same
numbers, bit for bit, and a model in half precision answers the same both times.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..core import check_sigmas, complete, denoiser, to_d, with_path
from .solver import Solver

HAS_FLOAT64 = ("cpu", "cuda")  # device types
GROWTH_LIMIT = 1e4  # beyond, the noise that is found is mostly the enlarged error of the steps


@dataclass(frozen=True)
class Invertible(Solver):
    """A solver with ``undo``: invert_<key>(model, x, sigmas, extra_args, callback, *, path, <knobs>) -> (x at sigmas[0], other).

    ``sample`` takes such a pair as ``pair``, then starts from it instead of from x, and ends on what was inverted.
    """

    undo: Callable | None = None
    growth: Callable[[int, dict], float] | None = None  # of an error while so many steps are undone
    fewest_steps: int = 1  # that can be undone

    def check_inversion(self, sigmas, **knobs):
        """ValueError for sigmas or knobs that no inversion can work with. Calls no model."""
        check_sigmas(sigmas)
        settings, steps = complete(self.knobs, knobs), len(sigmas) - 1
        if steps < self.fewest_steps:
            raise ValueError(
                f"sigmas has {steps} step(s) and {self.title} inverts {self.fewest_steps} or more: raise steps in the scheduler."
            )
        growth = self.growth(steps, settings)
        if not growth <= GROWTH_LIMIT:
            values = ", ".join(f"{name} {value:g}" for name, value in settings.items())
            raise ValueError(
                f"{values} over {steps} steps: undoing them would enlarge their errors {growth:.0e} times, and {GROWTH_LIMIT:.0e} is "
                "the most that leaves a usable noise. Use a value nearer to 1, or fewer steps."
            )
        return settings

    def invert(self, model, x, sigmas, extra_args=None, callback=None, *, path, **knobs):
        """The pair from which sampling along sigmas ends on x, (B, C, ..., H, W), which stands at sigmas[-1].

        sigmas fall, as for sampling, and may end at 0: the model is called at the others only. Callbacks count from the clean
        end.
        """
        settings = self.check_inversion(sigmas, **knobs)
        path = with_path(self.title, path, "sigmas[0]", sigmas[0])
        return self.undo(model, x, sigmas, extra_args, callback, path=path, **settings)

    def resuming(self, pair):
        """This solver, started from a pair that ``invert`` found."""
        return replace(self, sample=partial(self.sample, pair=pair))


class Run:
    """The sigmas and the model calls of one run. ``x`` is the start, as an exact state."""

    def __init__(self, model, x, sigmas, extra_args, callback):
        self.model_type = torch.promote_types(x.dtype, torch.float32)
        self.x = x.to(torch.float64 if x.device.type in HAS_FLOAT64 else self.model_type)
        self.sigmas = sigmas.to(self.x)
        self.steps = len(sigmas) - 1
        self.ends_clean = bool(sigmas[-1] == 0)
        self.denoise = denoiser(model, extra_args)
        self.callback = callback

    def denoised(self, x, i, step=None):
        """The model's answer at sigmas[i], reported as that of ``step``, if one is given."""
        x, sigma = x.to(self.model_type), self.sigmas[i].to(self.model_type)
        denoised = self.denoise(x, sigma)
        if step is not None and self.callback is not None:
            self.callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        return denoised

    def slope(self, x, i, step=None):
        return to_d(x, self.sigmas[i], self.denoised(x, i, step).to(x))

    def result(self, x):
        return x.to(self.model_type)


def vp_norms(path, sigmas):
    """By what x / norm is variance preserving: the coordinates both papers write in, finite at sigma 1 of a flow."""
    sigmas = sigmas.cpu().double()
    return torch.hypot(path.alpha(sigmas), sigmas)
