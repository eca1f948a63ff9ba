"""Encoded prompts as training keeps them: saved beside the run without pickle, and compared when it goes on."""

import json
from dataclasses import dataclass
from hashlib import blake2b

import torch
from safetensors import safe_open

from ..distill.checkpoints import check_room, save_tensors
from .host_conditions import Conditions

SAME = 0.01  # relative distance up to which two encodings of a prompt are the same, but for rounding


@dataclass(frozen=True, eq=False)
class PromptBank:
    """A DISTILLERY_PROMPTS. positive: one condition per prompt. negative: one, for all. texts: the prompts as they were written,
    the negative last; empty where they came as CONDITIONING. latents: None, or the latent of each prompt's picture as the VAE
    made it, (N, C, ..., H, W).
    """

    positive: Conditions
    negative: Conditions
    texts: tuple[str, ...] = ()
    latents: torch.Tensor | None = None

    @classmethod
    def of(cls, positive, negative, texts=(), latents=None):
        """From lists of CONDITIONING. ValueError where training cannot honour one, or the numbers do not fit."""
        bank = cls(Conditions.of(positive), Conditions.of(negative, "negative"), tuple(texts), latents)
        if len(bank.negative) != 1:
            raise ValueError(f"negative has {len(bank.negative)} parts: training takes one negative prompt for all.")
        if latents is not None and len(latents) != len(bank.positive):
            raise ValueError(f"there are {len(latents)} pictures and {len(bank.positive)} captions: give one caption for each.")
        packed(bank)
        return bank

    def key(self):
        """A text that is the same for the same prompts, after ComfyUI has been started again too."""
        tensors, layout = packed(self)
        if not self.texts or self.latents is not None:
            return digest(layout, tensors)
        return digest([self.texts, {name: list(tensor.shape) for name, tensor in tensors.items()}])


def packed(bank):
    """({name: tensor}, the rest as JSON can hold it). ValueError for what neither can."""
    tensors = {}
    layout = {name: [_packed(item.entry, tensors) for item in getattr(bank, name).items] for name in ("positive", "negative")}
    if bank.latents is not None:
        tensors["latents"] = bank.latents
    return tensors, layout


def _packed(value, tensors):
    if torch.is_tensor(value):
        name = f"tensor {len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        made_again = ("uuid", "model_conds")
        return {"dict": {key: _packed(part, tensors) for key, part in value.items() if key not in made_again}}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_packed(part, tensors) for part in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ValueError(
        f"conditioning carries a {type(value).__name__}, which cannot be kept with a run of training: connect the prompt alone."
    )


def _unpacked(layout, tensors):
    ((kind, value),) = layout.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpacked(part, tensors) for key, part in value.items()}
    if kind == "value":
        return value
    return {"list": list, "tuple": tuple}[kind](_unpacked(part, tensors) for part in value)


def save_bank(bank, path):
    """OSError where the disk has no room."""
    tensors, layout = packed(bank)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    check_room(path.parent, size + 2**20, "the encoded prompts")
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_tensors(path, own, {"distillery.prompts": json.dumps({"texts": bank.texts, **layout})})


def load_bank(path):
    """What ``save_bank`` wrote. ValueError where it is something else."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("distillery.prompts")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    if text is None:
        raise ValueError(f"{path} holds no prompts of this pack: export the run again.")
    layout = json.loads(text)
    positive, negative = ([_conditioning(_unpacked(item, tensors)) for item in layout[name]] for name in ("positive", "negative"))
    return PromptBank.of(positive, negative, layout["texts"], tensors.get("latents"))


def _conditioning(entry):
    return [[entry.pop("cross_attn", None), entry]]


def alike(bank, other):
    """Whether two banks are of the same prompts: encoded again, numbers may differ in the last places."""
    (tensors, layout), (others, other_layout) = packed(bank), packed(other)
    if layout != other_layout or tensors.keys() != others.keys():
        return False
    return all(_near(tensor, others[name]) for name, tensor in tensors.items())


def _near(a, b):
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return bool((a - b).norm() <= SAME * a.norm())


def digest(value, tensors=None):
    """A short hash of JSON and of {name: tensor}, bit for bit."""
    found = blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8)
    for name in sorted(tensors or {}):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
