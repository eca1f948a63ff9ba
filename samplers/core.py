"""What every method shares: the denoiser contract, the user's knobs, and the checks on what a user can get wrong.

A denoiser is ``model(x, sigma, **extra_args) -> denoised``: x (B, C, ..., H, W), sigma (B,), nothing changed in place.
"""

from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from math import isfinite

import torch


def batch_dims(x):
    """Every axis but the batch: what a norm or a mean over one item reduces."""
    return tuple(range(1, x.ndim))


def append_dims(sigma, x):
    """Shape sigma, () or (B,), to broadcast against x."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - 1)) if sigma.ndim else sigma


def to_d(x, sigma, denoised):
    """dx/dsigma. Predicted noise on VE paths, velocity (noise minus data) on flow."""
    return (x - denoised) / append_dims(sigma, x)


def predicted_noise(path, x, denoised, sigma):
    """eps, of unit variance, on every path: x = alpha denoised + sigma eps."""
    return to_d(x, sigma, path.alpha(sigma) * denoised)


def denoiser(model, extra_args):
    """``model`` as a function of x and one sigma, (), that answers in x's dtype: for further calls within a step."""
    return lambda x, sigma: model(x, sigma.expand(len(x)), **(extra_args or {})).to(x)


def march(step, model, x, sigmas, extra_args, callback):
    """The loop of every solver whose steps begin with a model call: ``x = step(i, x, denoised, sigma, sigma_next)``.

    A step to sigma 0 ends on denoised, as core's samplers do. The state is float32, or float64 where x is.
    """
    denoise = denoiser(model, extra_args)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sigmas = sigmas.to(x)
    ends_clean = bool(sigmas[-1] == 0)
    last = len(sigmas) - 2
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = denoised if i == last and ends_clean else step(i, x, denoised, sigma, sigma_next)
    return x


def check_sigmas(sigmas):
    """Raise ValueError unless sigmas is one strictly falling list of finite values >= 0. Only the last may be 0."""
    if sigmas.ndim != 1:
        raise ValueError(f"sigmas has shape {tuple(sigmas.shape)}: it must be one list of noise levels, shape (steps + 1,).")
    values = sigmas.tolist()
    if len(values) < 2:
        raise ValueError(
            f"sigmas has {len(values)} value(s): one step needs two. Raise steps or denoise in the scheduler, or split "
            "sigmas so that this sampler gets at least one step."
        )
    for i, value in enumerate(values):
        if not isfinite(value):
            raise ValueError(f"sigmas[{i}] is {value}: every noise level must be finite. Use another scheduler.")
        if value < 0:
            raise ValueError(f"sigmas[{i}] is {value:g}: a noise level cannot be negative. Use another scheduler.")
    for i, (value, following) in enumerate(pairwise(values)):
        if following >= value:
            raise ValueError(
                f"sigmas[{i}] is {value:g} and sigmas[{i + 1}] is {following:g}: sigmas must fall strictly, and 0 may "
                "only come last. Use fewer steps, or a scheduler that starts at the noisy end and repeats no value."
            )


def takes(method, name):
    """Whether a function has a parameter of this name: what a method needs, its signature says."""
    return name in signature(method).parameters


def with_path(title, path, name, sigma):
    """The path, for a method that needs one. ValueError without it, or where a flow is asked for a sigma it lacks."""
    if path is None:
        raise ValueError(f"{title} needs path=: how this model mixes signal and noise at each sigma.")
    if path.is_flow and sigma > 1:
        raise ValueError(f"{name} is {sigma:g}: on a flow model a noise level is at most 1. Use another scheduler.")
    return path


@dataclass(frozen=True)
class Knob:
    """One user setting. The type is the default's: float, int, bool, or str with options."""

    name: str
    default: float | int | bool | str
    tooltip: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    options: tuple[str, ...] = ()
    advanced: bool = False

    def __post_init__(self):
        assert self.tooltip, f"{self.name}: a knob without a tooltip"
        assert self.allows(self.default), f"{self.name}: default {self.default!r} is not {self.allowed}"

    @property
    def allowed(self):
        if isinstance(self.default, bool):
            return "True or False"
        if isinstance(self.default, str):
            return "one of " + ", ".join(self.options)
        return f"{'a whole number' if isinstance(self.default, int) else 'a number'} from {self.min:g} to {self.max:g}"

    def allows(self, value):
        if isinstance(self.default, bool):
            return isinstance(value, bool)
        if isinstance(self.default, str):
            return value in self.options
        kinds = int if isinstance(self.default, int) else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.min <= value <= self.max


class HasNeutral:
    """What has ``knobs`` and, of some of them, the values at which it changes nothing: ``neutral``, None where there are none."""

    def is_neutral(self, given):
        settings = complete(self.knobs, given)
        return self.neutral is not None and all(settings[name] == value for name, value in self.neutral.items())


def complete(knobs, given):
    """The given settings with defaults filled in. ValueError on an unknown name or a value out of range."""
    known = {knob.name: knob for knob in knobs}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"unknown setting {name}={value!r}: there is {', '.join(known) or 'none'}.")
        if not known[name].allows(value):
            raise ValueError(f"{name} is {value!r}: it must be {known[name].allowed}.")
    return {name: given.get(name, knob.default) for name, knob in known.items()}
