"""A LoRA in the dialects that other programs read: layers renamed, fused layers split by rows, alpha folded.

core       ComfyUI's own: ``diffusion_model.<path>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``.
kohya      sd-scripts: ``lora_unet_<path with _ for .>`` and the same endings. SD1's paths are those of diffusers.
diffusers  PEFT: ``transformer.<layer of diffusers>.lora_A.weight``, ``.lora_B.weight``. UNets have the older
           ``unet.<layer>.processor.to_q_lora.down.weight``, which ComfyUI reads too. There is no alpha: the scale is 1.

Which layer of a file is which of the network's comes as data, {name in the file: Part}.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..lora import ALPHA, DOWN, UP, Adapter, LoraSet

DIALECTS = ("core", "kohya", "diffusers")
PAIRS = {  # how the keys of a layer end: down's and up's
    "core": (DOWN, UP),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "unet": (".lora.down.weight", ".lora.up.weight"),
    "processor": ("_lora.down.weight", "_lora.up.weight"),
}


@dataclass(frozen=True)
class Part:
    """What one layer of a file is in the network: rows ``start`` to ``stop`` of the ``rows`` that the weight at ``path`` has.

    swapped: the file has the first half of the rows last, as diffusers has the (scale, shift) of a final modulation.
    """

    path: str
    start: int
    stop: int
    rows: int
    swapped: bool = False

    @classmethod
    def whole(cls, path, rows):
        return cls(path, 0, rows, rows)

    def take(self, up):
        """Of up (rows, rank, ...), the file's."""
        taken = up[self.start : self.stop]
        return swap_halves(taken) if self.swapped else taken

    def put(self, up, whole):
        """Write the file's up where it belongs in ``whole``, (rows, rank, ...)."""
        whole[self.start : self.stop] = swap_halves(up) if self.swapped else up


def swap_halves(up):
    return torch.cat(list(reversed(up.chunk(2))))


def native_names(rows, dialect):
    """{name: Part} where a dialect has the network's own paths: "core" always, "kohya" for all networks but SD1's and SD2's.

    rows: {path: rows of its weight}.
    """
    if dialect == "core":
        return {f"diffusion_model.{path}": Part.whole(path, n) for path, n in rows.items()}
    return {"lora_unet_" + path.replace(".", "_"): Part.whole(path, n) for path, n in rows.items()}


def to_file(lora, names, dialect):
    """The tensors of a file, {key: tensor on the CPU}, of a LoraSet.

    names: {name: Part}, each layer once, either whole or in parts. The values are the LoRA's bit for bit in "core", "kohya",
    and "diffusers" where alpha is the rank; another alpha is multiplied into up, in float32, and rounded to up's dtype.
    ValueError for a layer that the dialect has no name for, or that its names do not cover.
    """
    parts = {}
    for name, part in names.items():
        parts.setdefault(part.path, []).append((name, part))
    tensors = {}
    for path, adapter in lora.items():
        own = parts.get(path, [])
        if not covers([part for _, part in own], adapter.shape[0]):
            raise ValueError(
                f"the layer {path}, {adapter.shape[0]} rows, has no name in the dialect {dialect!r}: save in the dialect "
                "'core', which has one for every layer, or train without this layer."
            )
        down, up, scale = *weights(adapter), adapter.scale
        if dialect == "diffusers":
            up = scaled(up, scale).to(up.dtype)
        for name, part in own:
            down_key, up_key = (name + ending for ending in PAIRS[_pair(name, dialect)])
            tensors[down_key], tensors[up_key] = down.clone(), part.take(up).clone()
            if dialect != "diffusers":
                tensors[name + ALPHA] = torch.tensor(adapter.alpha)
    return tensors


def from_file(tensors, names):
    """The LoraSet of a file's tensors, whatever the dialect. names: {name: Part}, all that may be in the file.

    Parts of one layer that share down and alpha become one pair of the same rank, bit for bit; others are stacked at the sum of
    their ranks, with each alpha that is not the rank multiplied into up, in float32. Rows without a part are 0.
    ValueError for a key that is no part of a pair of down and up, and for a layer that is not among the names.
    """
    found = {}
    for name, pair in _pairs(tensors).items():
        if name not in names:
            raise ValueError(
                f"the file has a layer {name!r}, which this model does not have: it was made for another model, or for its "
                "text encoder. Load it with the LoRA loader of ComfyUI."
            )
        part = names[name]
        if len(pair[1]) != part.stop - part.start:
            raise ValueError(
                f"the file's layer {name!r} has {len(pair[1])} rows, and this model's has {part.stop - part.start}: it was "
                "made for another model."
            )
        found.setdefault(part.path, []).append((part, *pair))
    order = dict.fromkeys(part.path for part in names.values())
    return LoraSet({path: _joined(found[path]) for path in order if path in found})


def covers(parts, rows):
    """Are these Parts all rows, each once?"""
    reached = 0
    for part in sorted(parts, key=lambda part: part.start):
        if part.start != reached or part.rows != rows:
            return False
        reached = part.stop
    return reached == rows


def cast(tensors, dtype):
    """A file's tensors in ``dtype``, the alphas as they are. ValueError for a layer whose numbers do not fit."""
    made = {key: tensor if key.endswith(ALPHA) else tensor.to(dtype) for key, tensor in tensors.items()}
    for key, tensor in made.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{key} has numbers that are not finite in {dtype}: save in bfloat16 or float32.")
    return made


def weights(adapter):
    """(down, up) of an Adapter, on the CPU."""
    return adapter.down.detach().cpu(), adapter.up.detach().cpu()


def scaled(up, scale):
    """up times a number, in float32 or finer; as it is where the number is 1."""
    return up if scale == 1 else up.to(torch.promote_types(up.dtype, torch.float32)) * scale


def stacked(adapters):
    """One Adapter that adds what these (at least one, of one shape) add together, at the sum of their ranks."""
    downs, ups = zip(*(weights(adapter) for adapter in adapters))
    ups = [scaled(up, adapter.scale) for up, adapter in zip(ups, adapters)]
    return Adapter(torch.cat(downs), torch.cat(ups, 1), sum(map(len, downs)), adapters[0].window)


def _pair(name, dialect):
    if dialect != "diffusers":
        return "core"
    if not name.startswith("unet."):
        return "peft"
    return "processor" if ".processor." in name else "unet"


def _pairs(tensors):
    """{name: (down, up, alpha)} of a file."""
    pairs, used = {}, set()
    for key in tensors:
        for down, up in PAIRS.values():
            name = key.removesuffix(down)
            if name != key and name + up in tensors:
                alpha = tensors.get(name + ALPHA, len(tensors[key]))
                pairs[name] = tensors[key], tensors[name + up], float(alpha)
                used |= {key, name + up, name + ALPHA}
    left = [key for key in tensors if key not in used]
    if left:
        raise ValueError(
            f"the file has {left[0]!r} and {len(left) - 1} more that are no pair of down and up: only plain LoRAs can be read, "
            "no LoHa, LoKr, DoRA, biases or norms. Load it with the LoRA loader of ComfyUI."
        )
    return pairs


def _joined(entries):
    """The Adapter of one layer, from (Part, down, up, alpha) of each of its parts in the file."""
    parts, downs, ups, alphas = zip(*entries)
    ordered = sorted(parts, key=lambda part: part.start)
    apart = all(part.stop <= following.start for part, following in pairwise(ordered))
    if apart and len(set(alphas)) == 1 and all(torch.equal(down, downs[0]) for down in downs):
        whole = ups[0].new_zeros(parts[0].rows, *ups[0].shape[1:])
        for part, up in zip(parts, ups):
            part.put(up, whole)
        return Adapter(downs[0], whole, alphas[0])
    return stacked([_joined([entry]) for entry in entries])
