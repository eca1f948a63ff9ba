"""Tiny genuine instances of the networks of ComfyUI, with seeded weights, and inputs they run on as core would call them."""

import functools
from importlib import import_module

import comfy.ops
import tiny_image_networks
import tiny_video_networks
import torch

NETWORKS = {**tiny_image_networks.NETWORKS, **tiny_video_networks.NETWORKS}
UNREACHED = {  # large parts of one size only, which our inputs do not reach
    "Anima": "llm_adapter",
    "Wan Animate": "motion_encoder",
    "Wan HuMo": "audio_proj",
}


def class_of(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@functools.cache
def build(name):
    """The network in float32 on the CPU. Everything that a checkpoint would hold is filled with seeded noise."""
    path, settings, _ = NETWORKS[name]
    given = {"device": torch.device("cpu"), "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    network = class_of(path)(**settings, **given).requires_grad_(False).eval()
    if name in UNREACHED:
        setattr(network, UNREACHED[name], None)
    if name == "ACE-Step":  # its encoder of lyrics has one size only, and a layer of it is enough
        network.lyric_encoder.encoders = network.lyric_encoder.encoders[:1]
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
    return network


def run(name, network=None):
    """What the network, or another in its place, makes of its inputs: a tuple of tensors. Each call has the same inputs."""
    _, _, inputs = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    given = inputs(lambda *shape: torch.randn(shape, generator=generator))
    x = given.pop("x")
    batch = (x[0] if isinstance(x, list) else x).shape[0]
    given = {"transformer_options": {}, "control": None, **given}
    network = build(name) if network is None else network
    with torch.inference_mode():
        made = network(x, torch.full((batch,), 0.7), **given)
    return (made,) if torch.is_tensor(made) else tuple(made)
