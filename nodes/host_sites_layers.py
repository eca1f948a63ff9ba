"""Where a cache can stand in for what the layers of a UNet add, while the stream that they add it to is new."""

from functools import partial
from itertools import groupby

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

from .architectures import plain
from .host_blocks import forwards
from .host_sites import Evaluation, Site, untraced

LEVELS = {"blocks": (ResBlock, SpatialTransformer), "resblocks": (ResBlock,), "transformers": (SpatialTransformer,)}
PLACES = ("all", "encoder", "decoder")


class Layers(Site):
    """The residual layers of a UNet: its ResBlocks, its spatial transformers, or both (level); of the input blocks and the middle
    block, of the output blocks, or all (where). Kept: what they add to what their skip connections pass on.

    Zhu et al. 2024, A-SDM, arXiv:2406.00210, feature inheritance. ``resblocks`` and ``transformers`` are its layer level. ``blocks``
    is its block level: as the skip connections are affine, what a block adds to its stream is one sum of what its layers add, to
    which resizing and what is no residual layer are applied anew. The outputs of whole blocks could not be kept instead: those
    of the last block are the prediction (the site for that), those of the first ones never see the latent (the encoder's site).

    A layer that does not run heeds neither the current time nor the prompt; the time embedding of those that do is new.
    """

    title = "layers"

    def __init__(self, level="blocks", where="all"):
        self.level, self.where = level, where

    def fits(self, network):
        return bool(self.chains(network))

    def chains(self, network):
        """Layers that follow each other, of which one sum is kept: [layers]."""
        network, blocks = plain(network), []
        if not isinstance(network, UNetModel):
            return []
        if self.where != "decoder":
            blocks += [*network.input_blocks, network.middle_block or ()]  # small SDXL models have no middle
        if self.where != "encoder":
            blocks += network.output_blocks
        runs = (groupby(block, key=lambda layer: isinstance(layer, LEVELS[self.level])) for block in blocks)
        return [list(layers) for run in runs for residual, layers in run if residual]

    def evaluate(self, call, network, decide, given=None):
        chains, values = self.chains(network), decide(given)
        if values is not None:
            stand_in, stand_ins = untraced(_stand_in, entirely=True), {}
            for chain, value in zip(chains, values, strict=True):
                stand_ins |= {layer: partial(stand_in, layer, None) for layer in chain[:-1]}
                stand_ins[chain[-1]] = partial(stand_in, chain[-1], value)
            with forwards(stand_ins):
                return Evaluation(call(), None, True, 0, len(chains))
        sums = list(map(Sum, chains))
        with forwards({module: replacement for each in sums for module, replacement in each.replacements().items()}):
            output = call()
        kept = [each.added for each in sums]
        ran = all(tensor is not None for tensor in kept)
        return Evaluation(output, kept if ran else None, False, len(chains), 0)


class Sum:
    """What a chain of layers adds in one call, to what their skip connections alone make of its input."""

    def __init__(self, chain):
        self.chain = chain
        self.passed = self.caught = self.added = None

    def replacements(self):
        run, first = untraced(self.run), self.chain[0]
        given = {layer: partial(run, layer) for layer in self.chain}
        return {**given, first.skip_connection: untraced(self.catch, entirely=True)} if isinstance(first, ResBlock) else given

    def run(self, layer, forward, x, *args, **kwargs):
        first, self.caught = layer is self.chain[0], None
        output = forward(x, *args, **kwargs)
        if first and self.caught is not None:
            self.passed = self.caught  # rather than computed twice
        else:
            self.passed = _passed_on(layer, x if first else self.passed)
        if layer is self.chain[-1]:
            self.added = output - self.passed
        return output

    def catch(self, forward, x):
        self.caught = forward(x)
        return self.caught


def _passed_on(layer, x):
    """What the layer makes of its input where its own part adds nothing."""
    return layer.skip_connection(layer.x_upd(x)) if isinstance(layer, ResBlock) else x


def _stand_in(layer, value, forward, x, *args, **kwargs):
    passed = _passed_on(layer, x)
    return passed if value is None else passed + value
