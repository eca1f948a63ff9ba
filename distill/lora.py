"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) as plain modules, and sets of them under a network's module paths.

The increment of a layer's weight is alpha / rank * up @ down. Keys of a saved set end as ComfyUI's do.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"  # path + one of these: the keys of ``LoraSet.state``
CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the number of axes of the weight


@dataclass(frozen=True)
class Window:
    """Where a convolution reads: what the adapter of one shares with it. Tuples, one number for each axis of space."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def _keeping_size(kernel):
    return Window((1,) * len(kernel), tuple(size // 2 for size in kernel), (1,) * len(kernel))


class Adapter(nn.Module):
    """The increment of one linear layer or convolution.

    down: (rank, in) or (rank, in, *kernel). up: (out, rank) or (out, rank, 1, ...). alpha: float; alpha = rank is scale 1.
    window: of a convolution; None reads with stride and dilation 1 and keeps the size, as odd kernels can. ``LoraSet.fit``
    sets it. ValueError where the shapes do not belong together.
    """

    def __init__(self, down, up, alpha, window=None):
        super().__init__()
        shapes = f"down has shape {tuple(down.shape)} and up {tuple(up.shape)}"
        if down.ndim not in (2, *CONVOLUTIONS):
            raise ValueError(f"{shapes}: an adapter is of a linear layer, or of a convolution over 1, 2 or 3 axes.")
        if up.ndim != down.ndim or up.shape[1] != down.shape[0] or up[0, 0].numel() != 1:
            raise ValueError(f"{shapes}: they must be (rank, in, *kernel) and (out, rank, 1, ...), of the same rank.")
        self.down, self.up, self.alpha = nn.Parameter(down), nn.Parameter(up), float(alpha)
        self.window = window or _keeping_size(down.shape[2:])

    @property
    def rank(self):
        return len(self.down)

    @property
    def shape(self):
        """Of the weight that it changes."""
        return self.up.shape[:1] + self.down.shape[1:]

    @property
    def scale(self):
        return self.alpha / self.rank

    def forward(self, x, dtype=None, strength=1.0):
        """``strength`` times what it adds to the layer's output for this input, in x's dtype. Computed in ``dtype``, x's own
        unless given.
        """
        down, up, x_in = (tensor.to(dtype or x.dtype) for tensor in (self.down, self.up, x))
        scale = self.scale * strength
        if self.down.ndim == 2:
            added = F.linear(scale * F.linear(x_in, down), up)
        else:
            convolve, window = CONVOLUTIONS[self.down.ndim], self.window
            added = convolve(scale * convolve(x_in, down, None, window.stride, window.padding, window.dilation), up)
        return added.to(x.dtype)

    def weight(self):
        """The increment of the layer's weight, of its shape."""
        return (self.scale * (self.up.flatten(1) @ self.down.flatten(1))).reshape(self.shape)


def adapter_for(layer, rank, alpha=None, generator=None, dtype=torch.float32):
    """A new Adapter of a layer (torch's Linear or Conv, or anything with such a weight) on the CPU, that changes nothing yet.

    down is drawn from Kaiming's uniform law as torch draws a linear layer's weight (bound 1 / sqrt(fan in)), up is 0. alpha is
    the rank unless given. The rank is at most what the layer's weight can have.
    """
    outputs, *inputs = layer.weight.shape
    rank = min(rank, outputs, math.prod(inputs))
    down = torch.empty(rank, *inputs)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
    up = torch.zeros(outputs, rank, *(1 for _ in inputs[1:]))
    return Adapter(down.to(dtype), up.to(dtype), rank if alpha is None else alpha, window_of(layer))


def window_of(layer):
    """The Window of a convolution, None of a linear layer."""
    if len(layer.weight.shape) == 2:
        return None
    return Window(tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation))


class LoraSet(nn.Module):
    """Adapters by the paths of the modules that they change: ``double_blocks.0.img_attn.qkv``.

    adapters: {path: Adapter}, in the network's order.
    """

    def __init__(self, adapters):
        super().__init__()
        self.paths = tuple(adapters)
        self.adapters = nn.ModuleList(adapters.values())  # a ModuleDict allows no dots

    @classmethod
    def create(cls, layers, rank, alpha=None, generator=None, dtype=torch.float32):
        """A new set that changes nothing yet: an ``adapter_for`` each of {path: layer}."""
        return cls({path: adapter_for(layer, rank, alpha, generator, dtype) for path, layer in layers.items()})

    @classmethod
    def from_state(cls, state):
        """A set from what ``state`` gave. An alpha that is missing is the rank. ValueError on any other key, or half a pair."""
        paths = list(dict.fromkeys(key.removesuffix(DOWN) for key in state if key.endswith(DOWN)))
        known = {path + ending for path in paths for ending in (DOWN, UP, ALPHA)}
        for key in state:
            if key not in known:
                raise ValueError(f"the LoRA has a key {key!r}: it must hold pairs of {DOWN} and {UP}, with an {ALPHA} each.")
        for path in paths:
            if path + UP not in state:
                raise ValueError(f"the LoRA has {path + DOWN!r} and no {path + UP!r}: the file is incomplete.")
        return cls({path: Adapter(*_pair(state, path)) for path in paths})

    def state(self):
        """{path + key ending: tensor}: a flat dict of copies on the CPU, for a file."""
        flat = {}
        for path, adapter in self.items():
            flat[path + DOWN] = adapter.down.detach().cpu().clone().contiguous()
            flat[path + UP] = adapter.up.detach().cpu().clone().contiguous()
            flat[path + ALPHA] = torch.tensor(adapter.alpha)
        return flat

    def load(self, state):
        """Take over the values of a ``state`` in place, so that an optimiser keeps its parameters. ValueError unless it fits."""
        given = LoraSet.from_state(state)
        if {path: (a.shape, a.rank) for path, a in given.items()} != {path: (a.shape, a.rank) for path, a in self.items()}:
            raise ValueError("the LoRA has other layers or another rank than this one: it cannot be continued from it.")
        with torch.no_grad():
            for path, adapter in self.items():
                adapter.down.copy_(given[path].down)
                adapter.up.copy_(given[path].up)
                adapter.alpha = given[path].alpha

    def fit(self, layers):
        """Give each adapter the Window of its layer in {path: layer}. ValueError where a layer is missing or of another shape."""
        for path, adapter in self.items():
            if path not in layers:
                raise ValueError(f"the LoRA changes {path}, which this model does not have: it was made for another model.")
            if adapter.shape != tuple(layers[path].weight.shape):
                raise ValueError(
                    f"the LoRA changes {path} by {tuple(adapter.shape)}, and this model's weight there is "
                    f"{tuple(layers[path].weight.shape)}: it was made for another model."
                )
            adapter.window = window_of(layers[path]) or adapter.window

    def items(self):
        return zip(self.paths, self.adapters)

    def __getitem__(self, path):
        return self.adapters[self.paths.index(path)]

    def __contains__(self, path):
        return path in self.paths

    def __len__(self):
        return len(self.paths)


def _pair(state, path):
    down, up = state[path + DOWN], state[path + UP]
    return down.clone(), up.clone(), float(state.get(path + ALPHA, len(down)))
