"""Every optimiser, by name, and their state as tensors and JSON. Those of other libraries are imported where they are chosen."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch

from .lion import Lion


@dataclass(frozen=True)
class Optimiser:
    """make(params, lr, weight_decay) -> torch.optim.Optimizer. lr: the learning rate it is good at for LoRAs.

    own_schedule: it needs no falling learning rate. package: what to pip install, None where torch is enough.
    """

    make: Callable
    title: str
    source: str
    good_for: str
    lr: float
    own_schedule: bool = False
    package: str | None = None


def adamw(params, lr, weight_decay):
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)


def lion(params, lr, weight_decay):
    return Lion(params, lr=lr, weight_decay=weight_decay)


def adamw_8bit(params, lr, weight_decay):
    return library("bitsandbytes", "adamw_8bit").optim.AdamW8bit(params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)


def prodigy(params, lr, weight_decay):
    return library("prodigyopt", "prodigy").Prodigy(
        params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True
    )


def schedule_free(params, lr, weight_decay):
    made = library("schedulefree", "schedule_free").AdamWScheduleFree(
        params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay
    )
    made.train()
    return made


def library(package, optimiser):
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"optimiser is {optimiser!r}, which needs {package} ({error}): pip install {package} into ComfyUI's Python, or choose "
            "adamw."
        ) from error


def check(name):
    """ValueError, naming it, where the package of an optimiser is missing."""
    if OPTIMISERS[name].package is not None:
        library(OPTIMISERS[name].package, name)


OPTIMISERS = {
    "adamw": Optimiser(adamw, "AdamW", "Loshchilov & Hutter 2017, arXiv:1711.05101", "every recipe", 1e-4),
    "lion": Optimiser(lion, "Lion", "Chen et al. 2023, arXiv:2302.06675", "half of AdamW's memory", 2e-5),
    "adamw_8bit": Optimiser(
        adamw_8bit, "AdamW, 8 bit", "Dettmers et al. 2021, arXiv:2110.02861", "a quarter of AdamW's memory, in layers of 4096 weights or more", 1e-4,
        package="bitsandbytes",
    ),
    "prodigy": Optimiser(
        prodigy, "Prodigy", "Mishchenko & Defazio 2023, arXiv:2306.06101", "finding the learning rate by itself; lr multiplies it", 1.0,
        package="prodigyopt",
    ),
    "schedule_free": Optimiser(
        schedule_free, "Schedule-free AdamW", "Defazio et al. 2024, arXiv:2405.15682", "runs of a length not known beforehand", 4e-4,
        own_schedule=True, package="schedulefree",
    ),
}  # fmt: skip


def state_of(optimiser):
    """(tensors by a flat name, the rest as JSON can hold it): together everything that ``restore`` needs."""
    whole = optimiser.state_dict()
    tensors, others = {}, {}
    for name, value in _flat(whole["state"]):
        if torch.is_tensor(value):
            tensors[name] = value.detach().cpu().clone().contiguous()
        else:
            others[name] = value
    groups = [{key: item(value) for key, value in group.items()} for group in whole["param_groups"]]
    return tensors, {"others": others, "groups": groups}


def _flat(state, prefix=""):
    """(name, value) of nested dicts, with dots between their keys: bitsandbytes keeps its 8-bit moments one dict further down."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def item(value):
    return value.item() if torch.is_tensor(value) else value


def restore(optimiser, tensors, rest):
    """Give an optimiser of the same parameters the state that ``state_of`` gave."""
    state = {}
    for name, value in [*tensors.items(), *rest["others"].items()]:
        index, *keys, last = name.split(".")
        place = state.setdefault(int(index), {})
        for key in keys:
            place = place.setdefault(key, {})
        place[last] = value
    optimiser.load_state_dict({"state": state, "param_groups": rest["groups"]})


@contextmanager
def as_used(optimiser):
    """While this lasts, the parameters are those to use: a schedule-free optimiser trains at others. Restored bit for bit."""
    if not hasattr(optimiser, "eval"):
        yield
        return
    params = [p for group in optimiser.param_groups for p in group["params"]]
    trained_at = [p.detach().clone() for p in params]
    optimiser.eval()
    try:
        yield
    finally:
        optimiser.train()
        with torch.no_grad():
            for p, value in zip(params, trained_at):
                p.copy_(value)
