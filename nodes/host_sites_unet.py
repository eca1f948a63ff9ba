"""Where a cache can stand in for parts of a UNet: its deep branch, or its encoder.

The network's own forward runs over lists of blocks in which some are replaced by stand-ins, each in the place of the block that
it stands in for: what other packs do by block number goes on as before.
"""

from contextlib import contextmanager
from functools import partial

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from .architectures import plain
from .host_blocks import forwards
from .host_sites import Decoded, Evaluation, Site

WHERE_BLOCKS_RUN = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")  # other packs' patches


class DeepBranch(Site):
    """All but the outermost blocks of a UNet. Kept: what enters the first of the output blocks that always run.

    Ma et al. 2023, DeepCache, arXiv:2312.00858. depth: so many input blocks and output blocks always run; 1 is its branch 0.
    """

    title = "deep branch"

    def __init__(self, depth=1):
        self.depth = depth

    def fits(self, network):
        network = plain(network)
        return isinstance(network, UNetModel) and self.depth < len(network.output_blocks)

    def evaluate(self, call, network, decide, given=None):
        network = plain(network)
        inputs, outputs, cut = network.input_blocks, network.output_blocks, len(network.output_blocks) - self.depth
        blocks = len(inputs) + 1 + len(outputs)
        values = decide(given)
        if values is None:
            tap = Tap()
            tapped = [*outputs[: cut - 1], _ending(outputs[cut - 1], tap), *outputs[cut:]]
            with swapped(network, output_blocks=torch.nn.ModuleList(tapped)):
                output = call()
            return Evaluation(output, _caught([tap]), False, blocks, 0)
        (deep,) = values
        outside = {
            "input_blocks": [
                *inputs[: self.depth],
                _stand_in(inputs[self.depth], Thin()),
                *map(_stand_in, inputs[self.depth + 1 :]),
            ],
            "output_blocks": [*map(_stand_in, outputs[: cut - 1]), _stand_in(outputs[cut - 1], Give(deep)), *outputs[cut:]],
        }
        outside = {name: torch.nn.ModuleList(modules) for name, modules in outside.items()}
        outer = partial(_run_outer, self.depth, cut)
        with swapped(network, middle_block=_stand_in(network.middle_block), **outside), forwards({network: outer}):
            output = call()
        return Evaluation(output, None, True, 2 * self.depth, blocks - 2 * self.depth)


class Encoder(Site):
    """The input blocks and the middle block of a UNet. Kept: what each of them makes.

    Li et al. 2023, Faster Diffusion, arXiv:2312.09608: they change little from step to step, the output blocks much. ControlNets
    and the current time are heeded as ever; the latent is not. So that, parallel, the output blocks of all the steps up to the next
    evaluation can run as one batch.
    """

    title = "encoder"

    def __init__(self, parallel=False):
        self.parallel = parallel

    def fits(self, network):
        return isinstance(plain(network), UNetModel)

    def evaluate(self, call, network, decide, given=None):
        network = plain(network)
        encoder, outputs = [*network.input_blocks, network.middle_block], len(network.output_blocks)
        values = decide(given)
        if isinstance(values, Decoded):
            with forwards({network: lambda *_, **__: values.output}):
                return Evaluation(call(), None, True, 0, len(encoder) + outputs)
        if values is None:
            taps = [Tap() for _ in encoder]
            with _encoded(network, map(_ending, encoder, taps)):
                output = call()
            return Evaluation(output, _caught(taps), False, len(encoder) + outputs, 0)
        with _encoded(network, map(_stand_in, encoder, map(Give, values))):
            output = call()
        return Evaluation(output, None, True, outputs, len(encoder))

    def decode(self, call, network, values):
        """(what the network itself makes of these values in one ``call()``, how many blocks ran)"""
        network, made = plain(network), []

        def run(forward, *args, **kwargs):
            made.append(forward(*args, **kwargs))
            return made[0]

        encoder = [*network.input_blocks, network.middle_block]
        with _encoded(network, map(_stand_in, encoder, map(Give, values))), forwards({network: run}):
            call()
        return made[0], len(network.output_blocks)


def _encoded(network, blocks):
    """While it lasts, these are the network's input blocks and, last, its middle block."""
    *inputs, middle = blocks
    return swapped(network, input_blocks=torch.nn.ModuleList(inputs), middle_block=middle)


@contextmanager
def swapped(network, **parts):
    """While it lasts, the network has these parts in place of its own."""
    before = {name: getattr(network, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(network, name, part)
        yield
    finally:
        for name, part in before.items():
            setattr(network, name, part)


class Tap(torch.nn.Module):
    """Keeps a copy of what passes: the network and its patches (FreeU) go on to write over it."""

    caught = None

    def forward(self, x):
        self.caught = x.clone()
        return x


class Give(torch.nn.Module):
    """Gives a copy of this whatever it gets."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value.clone()


class Thin(torch.nn.Module):
    """One channel of what it gets: enough for the network to go on to where its output is replaced."""

    def forward(self, x):
        return x[:, :1]


class Idle(SpatialTransformer):
    """Does nothing in the place of a spatial transformer, of which the network counts how many it has passed (GLIGEN)."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, x, *args):
        return x


def _ending(block, layer):
    """The block with a further layer. There may be none: the middle of small SDXL models."""
    return torch.nn.Sequential(*(block or ()), layer)


def _stand_in(block, *layers):
    return torch.nn.Sequential(*(Idle() for layer in block or () if isinstance(layer, SpatialTransformer)), *layers)


def _caught(taps):
    return [tap.caught for tap in taps] if all(tap.caught is not None for tap in taps) else None


def _run_outer(depth, cut, forward, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
    """UNetModel.forward with what ControlNets and patches do to the outer blocks alone."""
    options = dict(transformer_options or {})
    if "patches" in options:
        patches = dict(options["patches"])
        patches.pop("middle_block_after_patch", None)
        for name in WHERE_BLOCKS_RUN:
            patches[name] = [partial(_where_it_runs, depth, cut, patch) for patch in patches.get(name, ())]
        options["patches"] = patches
    if control is not None:
        control = {**control, "middle": [], **_outer_control(depth, cut, **control)}
    return forward(x, timesteps, context, y, control, options, **kwargs)


def _where_it_runs(depth, cut, patch, *args):
    *given, options = args
    side, number = options["block"]
    if side == "input" and number >= depth:
        return given[0]
    if side == "output" and number < cut:
        return given
    return patch(*args)


def _outer_control(depth, cut, input=(), output=(), **_):
    """Each block takes the last entry that is left: those of the first input blocks come last, those of the last output blocks first."""
    return {"input": list(input[-depth:]), "output": [*output[: max(len(output) - cut, 0)], *[None] * cut]}
