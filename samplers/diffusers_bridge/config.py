"""A scheduler's config: read from JSON, completed from what the MODEL says of itself, and made into a scheduler.

Only diffusers' own classes are made, by name; nothing is downloaded, and no file is read.
"""

import json
import math
from inspect import signature

import torch

from .catalogue import USABLE, check_known

EXTRA = "diffusers"  # of pyproject.toml
BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas")
MOST = 100_000  # of timesteps, orders and the like
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "edm": "epsilon", "cosmos": "epsilon", "flow": "flow_prediction"}
FAULTS = (  # what diffusers raises at settings that it cannot use
    ValueError, TypeError, NotImplementedError, AssertionError, IndexError, ZeroDivisionError, RuntimeError, AttributeError,
    KeyError, ImportError, OverflowError,
)  # fmt: skip
REFUSED = {  # setting: (whether a value cannot be used, why)
    "variance_type": (lambda value: str(value).startswith("learned"), "a MODEL predicts no variance: use fixed_small"),
    "invert_sigmas": (bool, "it runs from the picture to the noise: use false"),
    "scale_factors": (bool, "it changes the size of the latent on the way: use null"),
    "tau_func": (lambda value: value is not None, "it is a Python function, and none is run: use null"),
    "num_train_timesteps": (
        lambda value: type(value) is not int or not 1 <= value <= MOST, f"it is a whole number from 1 to {MOST}",
    ),
    **dict.fromkeys(("shift", "flow_shift"), (lambda value: not is_number(value) or value <= 0, "it is a number above 0")),
    **dict.fromkeys(
        ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"), (lambda value: value is not None and not is_number(value), "it is a number")
    ),
}  # fmt: skip


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def scheduler_class(name):
    """One of USABLE. ValueError where diffusers, or this scheduler in it, is missing."""
    check_known(name)
    try:
        import diffusers
    except ImportError:
        raise ValueError(
            "this node needs diffusers, which is not installed: run `pip install diffusers` in ComfyUI's Python environment, or "
            f"install the pack's extra, `pip install .[{EXTRA}]` in its folder."
        ) from None
    found = getattr(diffusers, name, None)
    if found is None or "dummy" in found.__module__:
        raise ValueError(
            f"diffusers {diffusers.__version__} has no {name} that works here: upgrade with `pip install -U diffusers`, and with scipy "
            "and torchsde, which some schedulers need."
        )
    return found


def arguments(function):
    """The names of a function's parameters."""
    return [name for name in signature(function).parameters if name != "self"]


def own_settings(name):
    return arguments(scheduler_class(name).__init__)


def read(text):
    """scheduler_config.json as published, a dict; {} for an empty text. ValueError where it is no JSON object."""
    if not text.strip():
        return {}
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as fault:
        raise ValueError(f"config is no JSON: {fault}. Paste the whole of a scheduler_config.json, or leave it empty.") from None
    if isinstance(config, dict):
        return config
    raise ValueError(f"config is a {type(config).__name__}: it must be one JSON object, such as a scheduler_config.json.")


def chosen(config, choice=None):
    """(class name, its settings, settings of other schedulers), from a config and a choice that goes before its _class_name.

    Settings of other schedulers are ignored, as diffusers does; ValueError on those of none.
    """
    name = choice or config.get("_class_name")
    if not name:
        raise ValueError("config names no _class_name: choose a scheduler, or paste a scheduler_config.json that names one.")
    own = own_settings(name)
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    foreign = [key for key in given if key not in own]
    known = {key for other in USABLE if foreign for key in _settings_if_present(other)}
    for key in foreign:
        if key not in known:
            raise ValueError(f"config: {key} is a setting of no scheduler. {name} has {', '.join(own)}.")
    settings = {key: value for key, value in given.items() if key in own}
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config: {key} is {value}: it must be finite.")
        if isinstance(value, int) and abs(value) > MOST and key != "noise_sampler_seed":
            raise ValueError(f"config: {key} is {value}: no number above {MOST} makes sense there.")
    for key, (bad, why) in REFUSED.items():
        if key in settings and bad(settings[key]):
            raise ValueError(f"config: {key} is {settings[key]!r}, which this node cannot use: {why}.")
    return name, settings, foreign


def _settings_if_present(name):
    try:
        return own_settings(name)
    except ValueError:  # an older diffusers
        return []


def completed(name, settings, path, table):
    """(settings, those taken from the MODEL): what the config does not say, the MODEL does.

    table: the MODEL's noise levels at its timesteps, (T,), or None. Its noise schedule, its prediction and a flow's shift are
    taken; latents are never clipped to [-1, 1] unless the config says so.
    """
    own, taken = own_settings(name), {}

    def take(key, value):
        if key in own and key not in settings:
            taken[key] = value

    flows = path.is_flow and "use_flow_sigmas" in own
    if "trained_betas" in own and not path.is_flow and table is not None and not any(key in settings for key in BETAS):
        taken["trained_betas"] = betas_of(table)
        take("num_train_timesteps", len(table))
        take("snr_shift_scale", 1.0)
    if USABLE[name].state in ("table", "ve") or (USABLE[name].state == "vp" and not flows):
        take("prediction_type", PREDICTIONS[path.prediction])
    if flows:
        take("use_flow_sigmas", True)
        take("prediction_type", PREDICTIONS["flow"])
    if path.is_flow and table is not None and not settings.get("use_dynamic_shifting"):
        take("shift", shift_of(table))
        take("flow_shift", shift_of(table))
    for key in ("clip_sample", "clip_denoised"):
        take(key, False)
    return settings | taken, taken


def betas_of(table):
    """The betas that give these noise levels: 1 - a_k / a_(k - 1), a = 1 / (1 + sigma^2)."""
    kept = 1 / (1 + table**2)
    return (1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])).tolist()


def shift_of(table):
    """The shift of a flow's table: sigma = shift t / (1 + (shift - 1) t), read at t = 1/2."""
    middle = float(table[len(table) // 2 - 1])
    return round(middle / (1 - middle), 4)


def build(name, settings):
    """A new scheduler. ValueError with diffusers' own words where it refuses its settings."""
    try:
        return scheduler_class(name)(**settings)
    except FAULTS as fault:
        raise ValueError(f"config: {name} refuses its settings: {fault}") from fault
