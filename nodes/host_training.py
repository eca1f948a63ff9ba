"""Roles on one frozen base: a loaded MODEL that answers as teacher, student, fake score or EMA, with exact gradients.

Each role is a LoraSet that is added to the layers' outputs; the weights are never touched, copied or loaded twice.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import comfy.model_management
import comfy.patcher_extension
import comfy_kitchen
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from comfy_kitchen.backends import eager as plain_kernels

from ..distill.roles import TEACHER, Roles
from .architectures import blocks_of, import_path, plain
from .host import path_of
from .host_blocks import forwards
from .host_checkpoint import Checkpoints
from .host_conditions import Encoder
from .host_frozen import frozen, kind_of, layers_of, make_ordinary, smoothed
from .host_sites import LEAVES_FOR_LATER

RESIDUAL_BLOCK = "comfy.ldm.modules.diffusionmodules.openaimodel.ResBlock"  # of UNets: blocks too, where memory is concerned
FUSED = (  # kernels without a backward pass that some networks (Anima, Ernie, JoyImage) call in training too
    "apply_rope_split_half", "apply_rope_split_half1", "rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """What the layers add to what they compute: strength times an adapter each."""

    adapters: dict = field(default_factory=dict)  # path: Adapter
    strength: float = 1.0


class Stage:
    """A network whose layers play a Part. Use ``installed`` around it; until the first ``playing``, it plays the teacher."""

    def __init__(self, network, checkpointing):
        self.part = Part()  # not thread-local: on a GPU the backward pass runs in threads of its own
        repeatable = import_path(type(network)) != LEAVES_FOR_LATER
        self.checkpoints = Checkpoints(checkpointing and repeatable)
        self.replacements = {layer: partial(self._layer, path, layer) for path, layer in layers_of(network).items()}
        for module, streams in units_of(network):
            self.replacements[module] = partial(self._block, module, streams)

    def installed(self):
        """A context within which the network plays; afterwards it is what it was."""
        return forwards(self.replacements)

    @contextmanager
    def playing(self, part):
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def _layer(self, path, layer, forward, x, *args, **kwargs):
        output = frozen(layer, forward, x, *args, **kwargs)
        adapter = self.part.adapters.get(path)
        return output if adapter is None else output + adapter(smoothed(layer, x), strength=self.part.strength)

    def _block(self, block, streams, forward, *args, **kwargs):
        part = self.part

        def call():
            """Again in the same part, on copies of what blocks write over: its streams, and options that callers change."""
            with self.playing(part):
                return on_copies(streams, forward, *args, **kwargs)

        return self.checkpoints.run(block, call)


def units_of(network):
    """(module, its streams by name and by place) of all that is checkpointed."""
    for block in blocks_of(network) or []:
        yield block.module, {key for stream in block.group.streams for key in (stream.name, stream.place)}
    for module in network.modules():
        if import_path(type(module)) == RESIDUAL_BLOCK:
            yield module, set()


def on_copies(streams, forward, *args, **kwargs):
    """What a block computes, on copies of its streams and of the options it is given."""
    placed = (_copied(value, place in streams) for place, value in enumerate(args))
    return forward(*placed, **{name: _copied(value, name in streams) for name, value in kwargs.items()})


def _copied(value, is_stream):
    if isinstance(value, dict):
        return dict(value)
    if is_stream and isinstance(value, (list, tuple)):
        return type(value)(_copied(part, True) for part in value)
    return value.clone() if is_stream and torch.is_tensor(value) else value


class HostRoles(Roles):
    """The roles of a MODEL. See ``training``, which makes it."""

    def __init__(self, model, stage, loras):
        self.model, self.stage, self.loras = model, stage, loras
        self.path = path_of(model.get_model_object("model_sampling"))
        self.encoder = Encoder(model.model)

    def __call__(self, role, x, sigma, cond, strength=1.0):
        if not len(x) == len(sigma) == len(cond):
            raise ValueError(f"x has {len(x)} items, sigma {len(sigma)} and cond {len(cond)}: each item needs one of each.")
        if not any(loaded.model is self.model for loaded in comfy.model_management.current_loaded_models):
            _load(self.model)  # a VAE for a preview, or a clone with patches, has taken its place
        batches = self.encoder.batches(cond, x.shape[1:], x.device)
        with self.playing(role, strength):
            if len(batches) == 1:
                return self._denoised(x, sigma, batches[0][1])
            parts = [self._denoised(x[items], sigma[items], conds) for items, conds in batches]
        places = torch.tensor([item for items, _ in batches for item in items], device=x.device)
        return torch.cat(parts)[places.argsort()]

    def playing(self, role, strength=1.0):
        """While it lasts, whoever asks the MODEL is answered by this role: core's own samplers, for a preview."""
        if role == TEACHER:
            return self.stage.playing(Part())
        if role not in self.loras:
            raise ValueError(f"role is {role!r}: this run has {', '.join([TEACHER, *self.loras])}.")
        return self.stage.playing(Part(dict(self.loras[role].items()), strength))

    def _denoised(self, x, sigma, conds):
        options = {
            **self.model.model_options.get("transformer_options", {}),
            "cond_or_uncond": [0], "uuids": [], "sigmas": sigma, "optimized_attention_override": _differentiable_attention,
        }  # fmt: skip
        return self.model.model.apply_model(x, sigma, transformer_options=options, **conds)


def _differentiable_attention(attention, *args, **kwargs):
    """torch's own: some of the others have no backward pass."""
    return attention_pytorch(*args, **kwargs)


@contextmanager
def training(model, loras, checkpointing=True, shape=None):
    """HostRoles of a MODEL, within which autograd works: ``with training(model, {"student": lora}) as roles``.

    loras: {role: LoraSet}, put onto the model's device in place. checkpointing: run each block again in the backward pass,
    for about a third more time and a fraction of the memory. shape: (B, C, ..., H, W) of the largest batch, for which room is
    made. Afterwards, an exception or the user's interruption included, the MODEL's network has its forwards back, and its
    weights were never changed. ValueError where the model carries what training cannot honour.
    """
    check(model)
    network = model.model.diffusion_model
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # nodes run in it
        stack.enter_context(torch.enable_grad())
        kept = 2 if checkpointing else 1 + len(blocks_of(network) or [])  # in units of what one pass needs at its peak
        _load(model, 0 if shape is None else kept * model.memory_required(list(shape)))
        _check_network(network)
        layers = layers_of(network)
        for lora in loras.values():
            lora.fit(layers)
            lora.to(model.load_device)
        stage = Stage(network, checkpointing)
        stack.enter_context(stage.installed())
        stack.enter_context(differentiable())
        yield HostRoles(model, stage, loras)


def _load(model, memory=0):
    with torch.inference_mode():  # as core does: quantised weights moved outside of it, core itself could not move again
        comfy.model_management.load_models_gpu([model], memory_required=memory)
    make_ordinary(model.model.diffusion_model, model.load_device)


@contextmanager
def differentiable():
    """While it lasts, core and the kernels it calls do everything in ways that have a backward pass."""
    before, comfy.model_management.in_training = comfy.model_management.in_training, True
    fused = {name: getattr(comfy_kitchen, name) for name in FUSED}
    try:
        for name in FUSED:
            setattr(comfy_kitchen, name, getattr(plain_kernels, name))
        yield
    finally:
        comfy.model_management.in_training = before
        for name, kernel in fused.items():
            setattr(comfy_kitchen, name, kernel)


def check(model):
    """ValueError, naming it, where a MODEL carries what training cannot honour."""
    path_of(model.get_model_object("model_sampling"))
    options = model.model_options.get("transformer_options", {})
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        for wrapper in [*model.get_all_wrappers(kind), *comfy.patcher_extension.get_all_wrappers(kind, options)]:
            raise ValueError(
                f"model carries a wrapper around its network, from {wrapper.__module__} (a cache, a report, torch.compile or the "
                "like): connect the MODEL from before that node."
            )
    if "model_function_wrapper" in model.model_options:
        raise ValueError("model carries a function around its calls (model_function_wrapper): connect it from before that node.")
    patched = [name for name in model.object_patches if name.split(".")[0] == "diffusion_model"]
    if patched:
        raise ValueError(f"model has {patched[0]} replaced by another node: connect the MODEL from before that node.")
    if model.injections:
        raise ValueError(
            f"model carries injections ({', '.join(model.injections)}), such as a LoRA in bypass mode: use the ordinary LoRA "
            "loader, or connect the MODEL from before that node."
        )


def _check_network(network):
    if plain(network) is not network:
        raise ValueError("model is compiled: connect the MODEL from before torch.compile.")
    for path, module in network.named_modules():
        if "forward" in vars(module):
            raise ValueError(
                f"model has another forward on {path}: another node has changed it, or it is being trained already. Connect the "
                "MODEL from before that node, or load it again."
            )
        if kind_of(module) == "convolution" and module.padding_mode != "zeros":
            raise ValueError(f"model pads its convolutions by {module.padding_mode} (seamless tiling): connect it without that.")
