"""From what a user gave to a bridge that has passed every check, and the words that say what was chosen."""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import torch

from . import config
from .bridge import LARGEST, Bridge
from .catalogue import USABLE
from .levels import PURE, is_flow

FLUX = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}  # FluxPipeline's


@dataclass(frozen=True)
class Facts:
    """Of a MODEL: its path, its noise levels at its timesteps, (T,), rising, or None, and its noisiest level."""

    path: object
    table: torch.Tensor | None
    sigma_max: float


def prepare(text, facts, steps, *, choice=None, grid="own", values="", mu=None, eta=None, tokens=None):
    """(bridge, words). text: a scheduler_config.json or empty; choice: a class name that goes before the config's.

    values: the list of grid "timesteps" or "sigmas", as written; their number goes before steps. tokens: of one item, for dynamic shifting without mu. ValueError names what is wrong, and both sides where config and MODEL
    contradict each other.
    """
    name, settings, ignored = config.chosen(config.read(text), choice)
    settings, taken = config.completed(name, settings, facts.path, facts.table)
    scheduler = config.build(name, settings)
    check_path(name, scheduler, facts.path)
    check_table(name, scheduler, facts)
    listed = values_of(grid, values) if grid in ("timesteps", "sigmas") else ()
    steps = len(listed) or steps
    mu = shift_for(name, scheduler, mu, tokens)
    if eta is not None and "eta" not in config.arguments(scheduler.step):
        raise ValueError(f"eta is {eta:g}, and {name} takes none: set it to -1. A setting of the same name belongs into config.")
    bridge = Bridge(name, scheduler, steps, facts.path, facts.sigma_max, grid, listed, mu, eta)
    return bridge, described(bridge, bridge.rehearse(), taken, ignored)


def check_path(name, scheduler, path):
    """ValueError where scheduler and MODEL mix signal and noise in different ways."""
    if USABLE[name].state in ("trigflow", "crash"):
        return
    if is_flow(name, scheduler) and not path.is_flow:
        raise ValueError(
            f"{name} with this config is for flow models, and model predicts {path.prediction}: use a scheduler with betas, such as "
            "DDIMScheduler or EulerDiscreteScheduler" + ("." if USABLE[name].state == "flow" else ", or set use_flow_sigmas to false.")
        )
    if path.is_flow and not is_flow(name, scheduler):
        raise ValueError(
            f"{name} with this config is for eps, v and EDM models, and model is a flow: use FlowMatchEulerDiscreteScheduler"
            + (", or set use_flow_sigmas to true." if USABLE[name].state == "vp" else ".")
        )


def check_table(name, scheduler, facts):
    """ValueError where the config's betas are not those that the MODEL was trained on."""
    if is_flow(name, scheduler) or USABLE[name].state not in ("table", "ve", "vp") or facts.table is None:
        return
    kept = scheduler.alphas_cumprod.double()
    ours, theirs = ((1 - kept) / kept).sqrt(), facts.table
    if len(ours) != len(theirs):
        raise ValueError(
            f"config has {len(ours)} timesteps, and model was trained on {len(theirs)}: set num_train_timesteps to {len(theirs)}, or load "
            "the model that the config belongs to."
        )
    same = (ours - theirs).abs() <= LARGEST * theirs
    same |= (ours >= PURE) & (theirs >= PURE)
    if not same.all():
        worst = int((ours / theirs).log().abs().argmax())
        raise ValueError(
            f"config's betas are not model's: at timestep {worst} config has sigma {ours[worst]:.5g} and model {theirs[worst]:.5g}; at the last, "
            f"{ours[-1]:.5g} and {theirs[-1]:.5g}. Take beta_start, beta_end, beta_schedule and rescale_betas_zero_snr out of config, and "
            "the model's own are used, or load the model that the config belongs to."
        )


def values_of(grid, text):
    """The numbers of a list as written. ValueError unless they fall, and for sigmas stay above the 0 that is added."""
    try:
        values = tuple(float(word) for word in re.split(r"[\s,;\[\]()]+", text) if word)
    except ValueError:
        raise ValueError(f"values is {text!r}: write numbers with commas between, such as 999, 749, 499, 249.") from None
    if not values or not all(map(math.isfinite, values)) or any(after >= before for before, after in pairwise(values)):
        raise ValueError(f"values is {text!r}: give one {grid[:-1]} a step, each below the one before.")
    if values[-1] < 0 or (grid == "sigmas" and values[-1] == 0):
        raise ValueError(f"values ends at {values[-1]:g}: {'leave the 0 out, it is added' if values[-1] == 0 else 'none may be below 0'}.")
    return values


def shift_for(name, scheduler, mu, tokens):
    """mu for set_timesteps: given, or from the size of the latent as FluxPipeline has it, or None where none is wanted."""
    wanted = bool(scheduler.config.get("use_dynamic_shifting")) and "mu" in config.arguments(scheduler.set_timesteps)
    if not wanted:
        if mu is not None:
            raise ValueError(f"mu is {mu:g}, and {name} with this config shifts nothing by it: set mu to 0, or use_dynamic_shifting to true.")
        return None
    if mu is None and tokens is None:
        raise ValueError("config has use_dynamic_shifting, which goes by the latent's size: connect latent, or give mu.")
    if mu is not None:
        return mu
    given = {key: scheduler.config.get(key) for key in FLUX}
    known = {key: default if given[key] is None else given[key] for key, default in FLUX.items()}
    if known["max_image_seq_len"] <= known["base_image_seq_len"]:
        raise ValueError(
            f"config: max_image_seq_len is {known['max_image_seq_len']}: it must be above base_image_seq_len, {known['base_image_seq_len']}."
        )
    slope = (known["max_shift"] - known["base_shift"]) / (known["max_image_seq_len"] - known["base_image_seq_len"])
    return known["base_shift"] + slope * (tokens - known["base_image_seq_len"])


def described(bridge, draws_noise, taken, ignored):
    """What was chosen, a fact a line."""
    calls = bridge.calls(bridge.scheduler())
    sigmas = bridge.sigmas().tolist()
    timesteps = [f"{float(call.timestep):.5g}" for call, _ in calls if call.starts]
    shown = ", ".join(timesteps if len(timesteps) <= 12 else [*timesteps[:4], "...", *timesteps[-3:]])
    lines = [
        f"{bridge.name}: {len(sigmas) - 1} steps, {len(calls)} model evaluations.",
        f"Timesteps: {shown}.",
        f"SIGMAS: from {sigmas[0]:.5g} to {sigmas[-2]:.5g}, then 0.",
        f"Draws noise on its way: {'yes, item i of a batch from seed + i' if draws_noise else 'no'}.",
    ]
    if bridge.mu is not None:
        lines.append(f"Shift by size: mu {bridge.mu:.4g}.")
    if taken:
        words = [key if isinstance(value, list) else f"{key} {value}" for key, value in taken.items()]
        lines.append(f"Not in config, so as model has it: {', '.join(words)}.")
    if ignored:
        lines.append(f"Settings of other schedulers, ignored: {', '.join(ignored)}.")
    return "\n".join(lines)
