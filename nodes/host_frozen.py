"""The layers of a loaded network as training needs them: frozen, fetched again when wanted, and found by what they do.

Weights that ComfyUI loads may be inference tensors, quantised, on another device, or evicted at any time. So autograd keeps none
of them: the backward pass fetches each through core's own cast, as the forward pass did.
"""

import re
from contextlib import contextmanager
from fnmatch import fnmatchcase

import comfy.model_management
import torch
from comfy.ops import cast_bias_weight, uncast_bias_weight
from comfy.quant_ops import QuantizedTensor

from ..distill.settings import TARGETS
from .architectures import blocks_of

CONVOLUTIONS = {
    torch.nn.Conv1d: torch.nn.grad.conv1d_input,
    torch.nn.Conv2d: torch.nn.grad.conv2d_input,
    torch.nn.Conv3d: torch.nn.grad.conv3d_input,
}
MODULATION = re.compile(r"(\w*_)?(mod|norm\d?)(_\w|CX|C|X)?|\w*modulation\w*|adaln\w*", re.IGNORECASE)  # one part of a path
ATTENTION = re.compile(r"\w*(attn|attention)\w*|[qkv]|linear[12]", re.IGNORECASE)  # linear1 and 2: Flux joins it with the MLP
PARTS = {  # what a layer is in its network: presets of TARGETS that train it
    "attention": ("attention", "attention and mlp", "linear", "linear and convolutions"),
    "feed-forward": ("attention and mlp", "linear", "linear and convolutions"),
    "modulation": ("linear", "linear and convolutions"),
    "outside the blocks": ("linear", "linear and convolutions"),
    "convolution": ("linear and convolutions",),
}


# Which layers


def kind_of(module):
    """The kind of a layer with one weight: "linear", "convolution", or None for any other module."""
    if isinstance(module, tuple(CONVOLUTIONS)):
        return "convolution"
    castable = hasattr(module, "weight_function") and hasattr(module, "in_features") and not hasattr(module, "num_experts")
    return "linear" if isinstance(module, torch.nn.Linear) or castable else None  # quantised ones are core's own kind


def layers_of(network):
    """{path: layer} of a network's linear layers and convolutions, in its order."""
    return {path: module for path, module in network.named_modules() if kind_of(module) is not None}


def targets_of(network, targets="attention and mlp"):
    """{path: layer} of those that a LoRA is to change: by a preset of TARGETS, or by a list of paths, in which * stands for
    anything. ValueError where none of them is there. Grouped convolutions are passed over: a low-rank pair cannot express one.
    """
    layers = {path: layer for path, layer in layers_of(network).items() if getattr(layer, "groups", 1) == 1}
    if isinstance(targets, str):
        if targets not in TARGETS:
            raise ValueError(f"targets is {targets!r}: it must be one of {', '.join(TARGETS)}, or a list of paths.")
        parts = parts_of(network)
        chosen = {path: layer for path, layer in layers.items() if targets in PARTS[parts[path]]}
    else:
        chosen = {path: layer for path, layer in layers.items() if any(fnmatchcase(path, given) for given in targets)}
    if not chosen:
        raise ValueError(
            f"targets is {targets!r}, and this model has no such layer. It has, for example, {', '.join(list(layers)[:3])}: "
            "use a preset, or paths like these, with * for anything."
        )
    return chosen


def parts_of(network):
    """{path: which of PARTS it is} of every layer. Flux's joined layers count as attention."""
    blocks = [block.name for block in blocks_of(network) or []]
    return {path: _part(path, layer, blocks) for path, layer in layers_of(network).items()}


def _part(path, layer, blocks):
    if kind_of(layer) == "convolution":
        return "convolution"
    block = next((name for name in blocks if path.startswith(name + ".")), None)
    if block is None:
        return "outside the blocks"
    names = path.removeprefix(f"{block}.").split(".")
    if any(map(MODULATION.fullmatch, names)):
        return "modulation"
    return "attention" if any(map(ATTENTION.fullmatch, names)) else "feed-forward"


# What they compute


class Frozen(torch.autograd.Function):
    """A layer that has no gradient of its own, of which autograd keeps neither weight nor input."""

    @staticmethod
    def forward(ctx, x, module, run):
        ctx.module, ctx.shape, ctx.dtype = module, x.shape, x.dtype
        return run(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        module = ctx.module
        with weight_of(module, gradient) as weight:
            if kind_of(module) == "linear":
                passed = smoothed(module, gradient @ weight)
            else:
                to_input = next(CONVOLUTIONS[kind] for kind in CONVOLUTIONS if isinstance(module, kind))
                window = module.stride, module.padding, module.dilation, module.groups
                passed = to_input(ctx.shape, weight, gradient, *window)
        return passed.to(ctx.dtype), None, None


def frozen(module, forward, x, *args, **kwargs):
    """What ``forward``, the module's own, makes of x. With gradients: those of x alone, exact for the weight as it is now."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x, *args, **kwargs)

    def run(x):
        return forward(x, *args, **kwargs)

    if kind_of(module) == "convolution":
        return Frozen.apply(x, module, run)
    # Flattened out here: callers write over what comes back, and autograd forbids that on a view made in a Function.
    flat = Frozen.apply(x.reshape(-1, x.shape[-1]), module, run)
    return flat.view(*x.shape[:-1], flat.shape[-1])


def smoothed(module, x):
    """x as the layer's weight meets it: some quantised layers scale their inputs first, by channel."""
    scale = getattr(module, "pre_quant_scale", None)
    return x if scale is None else x * comfy.model_management.cast_to_device(scale, x.device, x.dtype)


@contextmanager
def weight_of(module, like):
    """The weight as the forward pass sees it, patches applied and dequantised, in the dtype and on the device of ``like``."""
    if not hasattr(module, "weight_function"):
        yield module.weight.to(like)
        return
    weight, bias, stream = cast_bias_weight(module, like, offloadable=True)
    try:
        yield weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    finally:
        uncast_bias_weight(module, weight, bias, stream)


def make_ordinary(network, device):
    """Turn the small parameters (norms, tables) that autograd cannot keep into ordinary copies of the same values.

    Those are inference tensors, and under core's dynamic memory the ones that may be evicted; these go to ``device``. Nothing
    has to be undone. The layers stay as they are: see Frozen.
    """
    layers = set(layers_of(network).values())
    for module in network.modules():
        if module in layers:
            continue
        evictable = hasattr(module, "_v") and getattr(module, "weight_lowvram_function", None) is None
        for name, parameter in module._parameters.items():
            if parameter is not None and (parameter.is_inference() or evictable):
                copy = parameter.detach().to(device if evictable else parameter.device, copy=True)
                module._parameters[name] = torch.nn.Parameter(copy, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()
