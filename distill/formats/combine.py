"""LoRAs added up, made smaller, and made stronger or weaker: each answer is a LoraSet again, on the CPU."""

from dataclasses import dataclass
from math import isfinite, sqrt

import torch

from ..lora import Adapter, LoraSet
from .dialects import stacked, weights


@dataclass(frozen=True)
class Resized:
    """What became of one layer: its rank, and the Frobenius norm of what was lost as a share of the increment's."""

    rank: int
    lost: float


def scale(lora, strength):
    """The LoraSet that at strength 1 does what this does at ``strength``: alpha times strength, the same weights."""
    if not isfinite(strength):
        raise ValueError(f"strength is {strength}: it must be a finite number.")
    return LoraSet({path: Adapter(*weights(a), a.alpha * strength, a.window) for path, a in lora.items()})


def sweep(lora, strengths):
    """{strength: LoraSet}, for a look at what the strength does. ValueError for an empty list."""
    if not strengths:
        raise ValueError("strengths is empty: give at least one, such as 0.5, 1.")
    return {strength: scale(lora, strength) for strength in strengths}


def merge(loras, rank=None):
    """One LoraSet that adds what these do together: loras is [(LoraSet, weight)], at least one.

    Exact up to the rounding of up (float32 or finer): ranks are stacked, so a layer's rank is the sum of theirs, and alpha
    equals it. rank: the most a layer may have, by ``resize``; None keeps the sum. ValueError where a layer's shapes differ.
    """
    if not loras:
        raise ValueError("there is no LoRA to merge: give at least one.")
    layers = {}
    for lora, weight in loras:
        if not isfinite(weight):
            raise ValueError(f"weight is {weight}: it must be a finite number.")
        for path, adapter in scale(lora, weight).items():
            others = layers.setdefault(path, [])
            if others and others[0].shape != adapter.shape:
                raise ValueError(
                    f"the layer {path} is {tuple(others[0].shape)} in one LoRA and {tuple(adapter.shape)} in another: they "
                    "were made for different models."
                )
            others.append(adapter)
    merged = LoraSet({path: stacked(adapters) for path, adapters in layers.items()})
    return merged if rank is None else resize(merged, rank=rank)[0]


def resize(lora, rank=None, energy=1.0):
    """(LoraSet, {path: Resized}) with each layer's increment replaced by its best approximation of lower rank.

    rank: the most a layer may have; None is its own. energy: the share of the squared Frobenius norm to keep, in (0, 1]; the
    rank is the lowest that keeps it. The truncated SVD is the best there is (Eckart and Young 1936, doi:10.1007/BF02288367),
    found from the factors alone: with down.T = Q_d R_d and up = Q_u R_u, the SVD is that of R_u R_d.T, a rank by rank matrix.
    Computed in float64, returned in the dtype of the weights; alpha becomes the rank. A layer that adds nothing keeps rank 1.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}: it must be at least 1.")
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}: it must be above 0 and at most 1, which keeps all.")
    made, report = {}, {}
    for path, adapter in lora.items():
        made[path], report[path] = _resized(adapter, rank or adapter.rank, energy)
    return LoraSet(made), report


def _resized(adapter, rank, energy):
    down, up = weights(adapter)
    q_up, r_up = torch.linalg.qr(up.flatten(1).double() * adapter.scale)
    q_down, r_down = torch.linalg.qr(down.flatten(1).double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T)
    squares = values**2
    kept, total = squares.cumsum(0), squares.sum()
    enough = kept >= energy * total * (1 - 1e-12)  # energy 1 must not turn on the rounding of the last sum
    rank = min(rank, int(enough.nonzero()[0]) + 1)
    root = values[:rank].sqrt()
    new_up = (q_up @ left[:, :rank] * root).to(up.dtype).reshape(-1, rank, *up.shape[2:])
    new_down = (root[:, None] * (right[:rank] @ q_down.T)).to(down.dtype).reshape(rank, *down.shape[1:])
    lost = sqrt(squares[rank:].sum() / total) if total else 0.0
    return Adapter(new_down, new_up, rank, adapter.window), Resized(rank, lost)
