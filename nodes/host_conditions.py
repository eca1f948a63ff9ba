"""CONDITIONING as training needs it: a bank of single conditions, of which each item of a batch gets its own.

Captions of a batch are never mixed or averaged: items whose conditions core would not batch are evaluated one after another.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import comfy.sampler_helpers
import comfy.samplers
import torch

from .architectures import import_path

REFUSED = {  # key in a CONDITIONING: what put it there
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "hooks": "hooks (a LoRA on the prompt alone)",
    "area": "an area of the picture",
    "mask": "a mask",
    "start_percent": "a range of steps",
    "end_percent": "a range of steps",
}


ONE_FOR_ALL = {  # network: a condition of which it takes one for the whole batch; core itself fails on two there
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": "attention_mask",
}


@dataclass(frozen=True, eq=False)
class Condition:
    """One prompt as core's text nodes make it. role: "positive" or "negative", which some models treat differently."""

    entry: dict
    role: str


class Conditions:
    """One Condition per item. ``conditions[indices]`` picks items (a slice, or whole numbers, a tensor of them too)."""

    def __init__(self, items):
        self.items = tuple(items)

    @classmethod
    def of(cls, conditionings, role="positive"):
        """From a list of CONDITIONING: each part of each (Combine joins several) is one item.

        ValueError on what training cannot honour.
        """
        entries = [entry for conditioning in conditionings for entry in comfy.sampler_helpers.convert_cond(conditioning)]
        if not entries:
            raise ValueError("conditioning is empty: give at least one prompt.")
        for entry in entries:
            for key, meaning in REFUSED.items():
                if entry.get(key) is not None:
                    raise ValueError(f"conditioning carries {meaning}, which training cannot honour: connect the prompt alone.")
        return cls(Condition(entry, role) for entry in entries)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, indices):
        if isinstance(indices, slice):
            return Conditions(self.items[indices])
        return Conditions(self.items[index] for index in map(int, indices))

    def __add__(self, other):
        return Conditions(self.items + other.items)

    def dropped(self, which, negative):
        """Where ``which``, (B,) of bools, is true, the item of ``negative``, of the same length, instead."""
        return Conditions(theirs if drop else ours for ours, theirs, drop in zip(self.items, negative.items, which, strict=True))


class Encoder:
    """What a model makes of conditions (``extra_conds``), once for each and for each shape of latent; kept on the CPU."""

    def __init__(self, base):
        self.base = base
        self.alone = ONE_FOR_ALL.get(import_path(type(base.diffusion_model)))
        self.known = WeakKeyDictionary()  # Condition: {shape of one latent: {name: core's COND}}

    def batches(self, conditions, shape, device):
        """[(numbers of the items, arguments of apply_model)]: as few batches as core would make.

        shape: of one latent, without the batch.
        """
        made = [self._made(condition, tuple(shape), device) for condition in conditions.items]
        groups = []
        for number, conds in enumerate(made):
            fitting = (group for group in groups if comfy.samplers.cond_equal_size(made[group[0]], conds))
            group = None if self.alone in conds else next(fitting, None)
            groups.append([number]) if group is None else group.append(number)
        return [(group, _on(device, comfy.samplers.cond_cat([made[number] for number in group]))) for group in groups]

    @torch.no_grad()
    def _made(self, condition, shape, device):
        by_shape = self.known.setdefault(condition, {})
        if shape not in by_shape:
            latent = torch.zeros(1, *shape, device=device)
            given = {condition.role: [{**condition.entry, "model_conds": {}}]}
            (entry,) = comfy.samplers.process_conds(self.base, latent, given, device, latent_image=latent, seed=0)[condition.role]
            single = {name: cond.process_cond(batch_size=1, area=None) for name, cond in entry["model_conds"].items()}
            by_shape[shape] = {name: cond._copy_with(_mapped(_kept, cond.cond)) for name, cond in single.items()}
        return by_shape[shape]


def _kept(tensor):
    return tensor.detach().to("cpu", copy=True)  # which is no inference tensor, as the node's inputs are


def _on(device, value):
    return _mapped(lambda tensor: tensor.to(device), value)


def _mapped(change, value):
    """The same structure with each tensor in it changed."""
    if torch.is_tensor(value):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(change, part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(change, part) for part in value)
    return value
