"""Where in a network a cache can stand in for computation: the whole prediction, or its blocks but for the first and last.

Use inside an APPLY_MODEL wrapper, the only one that fires for every network. A site remembers nothing: whoever decides does.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from types import MethodType

import torch

from .architectures import Block, architecture_of, blocks_of, import_path, plain
from .host_blocks import forwards

UNET = "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel"
SKIP_CONNECTED = (  # the last blocks are also given what the first ones made
    "comfy.ldm.hydit.models.HunYuanDiT", "comfy.ldm.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain",
)  # fmt: skip
LEAVES_FOR_LATER = "comfy.ldm.seedvr.model.NaDiT"  # its blocks compute things once that later blocks and the last layer read
MIXES = {  # core gives all timbres to the first row; core swaps the two prompts; all rows are one sequence
    "comfy.ldm.ace.ace_step15.AceStepConditionGenerationModel", "comfy.ldm.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain", LEAVES_FOR_LATER,
}  # fmt: skip
TEXT = {"txt", "context", "c", "encoder_hidden_states", "text_tokens", "instruct_hidden_states", "y"}  # names of streams


@dataclass(frozen=True)
class Evaluation:
    """What came of one call.

    kept: the tensors from which a forecast learns, the rows of the batch always first. None where the site's part did not run:
    it was skipped, or another pack answered in the network's place.
    done, left_out: blocks (of a site inside them: its parts) that ran and that did not.
    """

    output: torch.Tensor
    kept: list[torch.Tensor] | None
    skipped: bool
    done: int
    left_out: int


@dataclass(frozen=True)
class Decoded:
    """Stands in for what a site keeps: what the network itself makes of it, before the model turns that into a prediction."""

    output: torch.Tensor


class Site:
    """One place in a network, with its knobs."""

    title = ""
    parallel = False  # whether it can run the rest of the network for several steps at once: it has ``decode``

    def fits(self, network):
        """Whether the network (``model.model.diffusion_model``) has this place."""
        raise NotImplementedError

    def evaluate(self, call, network, decide, given=None):
        """The Evaluation of one ``call()``, which runs the network once.

        decide(signal) is asked once, as soon as the signal is known. None: evaluate. A list of tensors, like what an evaluation
        keeps: skip, with these in its place; they are only read. The signal is ``given`` where the site has none of its own.
        """
        raise NotImplementedError


class Prediction(Site):
    """All of the call. Kept: its output."""

    title = "whole prediction"

    def fits(self, network):
        return True

    def evaluate(self, call, network, decide, given=None):
        blocks = len(blocks_of(network) or [network])
        values = decide(given)
        if values is not None:
            (output,) = values
            return Evaluation(output.clone(), None, True, 0, blocks)
        output = call()
        return Evaluation(output, [output.clone()], False, blocks, 0)


class Blocks(Site):
    """The blocks of the main stream after the ``first`` and before the ``last`` so many.

    Kept: what these blocks add to each of their streams, from where it enters the first to where it leaves the last of them.
    Where the network joins its streams on the way (Flux: text and image after the double blocks), what is added before and what
    is added after are kept apart, so that the network itself does the joining. What it adds between the blocks of one kind, as a
    ControlNet does, is kept with them.

    Signal: what the first blocks have added to the main stream (of several kinds: those of the last kind), as first-block
    caches have it; with none, what is given.
    """

    title = "blocks"

    def __init__(self, first=1, last=0):
        self.first, self.last = first, last

    def fits(self, network):
        blocks = blocks_of(network)
        if not blocks or len(blocks) <= self.first + self.last:
            return False
        path = architecture_of(type(plain(network))).network
        if path in SKIP_CONNECTED:
            return self.last < max(self.first, 1)
        if path == LEAVES_FOR_LATER:
            return self.first > 0 and self.last == 0
        return path != UNET

    def evaluate(self, call, network, decide, given=None):
        blocks = blocks_of(network)
        inside = blocks[self.first : len(blocks) - self.last]
        ahead = [block for block in blocks[: self.first] if block.group == blocks[self.first - 1].group]
        signal = Span(ahead, lambda: None) if ahead else None
        decision = Decision(decide, lambda: signal.main() if signal else given)
        spans = [Span(list(kind), decision) for _, kind in groupby(inside, key=lambda block: block.group)]
        replacements = [span.replacements() for span in [signal, *spans] if span]
        with forwards({module: replacement for part in replacements for module, replacement in part.items()}):
            output = call()
        if decision.values is not None:
            return Evaluation(output, None, True, len(blocks) - len(inside), len(inside))
        ran = all(span.added is not None for span in spans)
        return Evaluation(output, [tensor for span in spans for tensor in span.added] if ran else None, False, len(blocks), 0)


class Decision:
    """What ``decide`` says in one call. Called: the values that stand in, taken from the front by one after another; or None."""

    def __init__(self, decide, signal):
        self.decide, self.signal = decide, signal
        self.asked, self.values = False, None

    def __call__(self):
        if not self.asked:
            self.asked, values = True, self.decide(self.signal())
            self.values = None if values is None else iter(values)
        return self.values


@dataclass
class Span:
    """Blocks of one kind that follow each other, in one call. They run, or ``values()`` has what to add in their place."""

    blocks: list[Block]
    values: Callable
    entered: tuple | None = None  # the streams as they enter the first
    added: list[torch.Tensor] | None = None  # to each of them until the last

    def replacements(self):
        run = partial(untraced(self.run), untraced(self.enters, entirely=True), untraced(self.leaves, entirely=True))
        return {block.module: partial(run, block) for block in self.blocks}

    def run(self, enters, leaves, block, forward, *args, **kwargs):
        stand_in = enters(block, args, kwargs)
        if stand_in is not None:
            return stand_in
        output = forward(*args, **kwargs)
        leaves(block, output)
        return output

    def enters(self, block, args, kwargs):
        """What the block returns without running. None: it is to run."""
        group, streams = block.group, block.group.inputs(args, kwargs)
        values = self.values()
        if block is self.blocks[0]:
            self.entered = streams
        if values is not None:
            if block is self.blocks[-1]:
                return group.output(self.increased(self.entered, values))
            # The network may keep what it gave (VACE) and add to what it gets in place (ControlNet): a copy, and one is enough.
            return group.output(_copy(streams) if block is self.blocks[0] else streams)
        if block is self.blocks[0]:
            self.entered = _copy(streams)  # since some blocks write over them
        return None

    def leaves(self, block, output):
        if block is self.blocks[-1]:
            self.added = self.increase(output if len(block.group.streams) > 1 else (output,))

    def increase(self, left):
        """What was added to each stream, rows first. One that is not handed on at the end, as SD3's text, counts as unchanged."""
        pairs = zip(_leaves(self.entered), _leaves(left), strict=True)
        moved = ((torch.zeros_like(a) if b is None else b - a) for a, b in pairs if _is_stream(a))
        return [tensor.movedim(self.rows(), 0) for tensor in moved]

    def increased(self, stream, values):
        """The same streams with the values added."""
        if isinstance(stream, (tuple, list)):
            return type(stream)(self.increased(part, values) for part in stream)
        return stream + next(values).movedim(0, self.rows()) if _is_stream(stream) else stream

    def main(self):
        """What was added to the main stream. None if the blocks did not run."""
        if self.added is None:
            return None
        names = [stream.name for stream in self.blocks[0].group.streams]
        place = next(place for place, name in enumerate(names) if name not in TEXT)
        return self.added[sum(map(_is_stream, _leaves(self.entered[:place])))]

    def rows(self):
        """The dimension that holds the rows of the batch: not the first in Cosmos 1, which says so."""
        return getattr(self.blocks[0].module, "x_format", "B").index("B")


def mixes(network):
    """Whether what its blocks make cannot be told apart by the conditions in a batch."""
    return any(import_path(kind) in MIXES for kind in type(plain(network)).__mro__)


def untraced(function, entirely=False):
    """The function, which torch.compile runs as it is where it has been asked to compile anything.

    What it calls is compiled as ever, such as a network's own forward; entirely: neither.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    if isinstance(function, partial):
        return partial(untraced(function.func, entirely), *function.args)
    if isinstance(function, MethodType):
        return partial(_untraced(function.__func__, entirely), function.__self__)
    return _untraced(function, entirely)


@cache  # of functions alone: what they are bound to is a run's
def _untraced(function, entirely):
    return torch.compiler.disable(function, recursive=entirely)


def _leaves(streams):
    for stream in streams:
        if isinstance(stream, (tuple, list)):
            yield from _leaves(stream)
        else:
            yield stream


def _is_stream(value):
    """Whether it is a stream, and no size of one (SeedVR)."""
    return torch.is_tensor(value) and value.is_floating_point()


def _copy(stream):
    if isinstance(stream, (tuple, list)):
        return type(stream)(map(_copy, stream))
    return stream.clone() if torch.is_tensor(stream) else stream
