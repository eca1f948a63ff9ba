"""ComfyUI's prepared prompts during a run: whose they are, which of them act at a noise level, and some items' share of them."""

import comfy.conds
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from .host_batches import controls


def roles_of(conds, named):
    """The name of each list of entries in ``named``, a guider's prompts; None for a list that is None or not among them.

    By the identity of the first entry: context windows copy entries, and core lends some to the other lists, behind their own.
    """
    roles = {entries[0]["uuid"]: name for name, entries in reversed(named.items()) if entries}
    return [roles.get(entries[0]["uuid"]) if entries else None for entries in conds]


def active(entries, timestep):
    """Which of these entries, and of their ControlNets, act at this noise level: identities, nothing if none."""
    sigma = timestep[0]
    acting = [entry for entry in entries if within(entry.get("timestep_start"), entry.get("timestep_end"), sigma)]
    helpers = [control for control in controls(acting) if within(*(control.timestep_range or (None, None)), sigma)]
    return (*(entry["uuid"] for entry in acting), *map(id, helpers))


def within(start, end, sigma):
    return (start is None or bool(sigma <= start)) and (end is None or bool(sigma >= end))


def rows_of(entries, items, batch, model_options):
    """The prompt for some items of the batch alone. None where that cannot be told: core lays what a prompt holds along the whole
    batch, and other packs' patches and caches may hold more.
    """
    patches = model_options["transformer_options"]
    foreign = any(patches.get(name) for name in ("patches", "patches_replace")) or "model_function_wrapper" in model_options
    foreign = foreign or get_all_wrappers(WrappersMP.DIFFUSION_MODEL, model_options, is_model_options=True)
    if foreign or "multigpu_clones" in model_options:
        return None
    try:
        return [rows_of_entry(entry, items, batch) for entry in entries]
    except NotImplementedError:
        return None


def rows_of_entry(entry, items, batch):
    if "gligen" in entry or any(len(control.cond_hint_original) > 1 for control in hinted(entry)):
        raise NotImplementedError
    some = dict(entry)
    some["model_conds"] = {name: rows_of_value(value, items, batch) for name, value in entry["model_conds"].items()}
    if "mask" in entry:
        some["mask"] = rows_of_tensor(entry["mask"], items, batch)
    return some


def hinted(entry):
    return [control for control in controls([entry]) if control.cond_hint_original is not None]


def rows_of_value(value, items, batch):
    if isinstance(value, comfy.conds.CONDConstant):
        return value
    if isinstance(value, comfy.conds.CONDList):
        return value._copy_with([rows_of_tensor(tensor, items, batch) for tensor in value.cond])
    if isinstance(value, comfy.conds.CONDRegular) and torch.is_tensor(value.cond):
        return value._copy_with(rows_of_tensor(value.cond, items, batch))
    raise NotImplementedError


def rows_of_tensor(tensor, items, batch):
    if tensor.shape[0] == 1:
        return tensor
    return comfy.utils.repeat_to_batch_size(tensor, batch)[torch.tensor(items, device=tensor.device)]
