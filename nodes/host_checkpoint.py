"""Blocks whose gradients stay exact whatever they write over, and which, with checkpointing, are run again rather than kept.

Blocks of Flux and its relatives write over their inputs (``img += ...``). Autograd refuses that where it notices, and torch's
checkpointing does not notice: gradients are then wrong without a word.
"""

from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch.autograd.graph import saved_tensors_hooks


class Checkpoints:
    """How autograd keeps what it needs of each block: as copies where the block writes over it, everything else as it is.

    Which tensors those are, is found out by the first run of a block, told by their version counters, and remembered. With
    ``recompute`` nothing is kept until the backward pass reaches the block: it is then run again.
    """

    def __init__(self, recompute):
        self.recompute = recompute
        self.overwritten = WeakKeyDictionary()  # block: the numbers of the tensors, in the order in which autograd keeps them

    def run(self, block, call):
        """What ``call()`` returns, which runs the block and can be called again: with the same inputs, in the same state."""
        if not torch.is_grad_enabled():
            return call()
        if not self.recompute:
            return self._run_keeping(block, call)[0]
        again = _Again(partial(self._run_keeping, block, call))
        with saved_tensors_hooks(again.number, again.tensor):
            return call()

    def _run_keeping(self, block, call):
        """What call() returns, and the list of _Kept."""
        overwritten = self.overwritten.setdefault(block, set())
        while True:
            kept = []
            with saved_tensors_hooks(partial(_keep, kept, overwritten), _Kept.get):
                output = call()
            changed = {number for number, tensor in enumerate(kept) if tensor.changed}
            if not changed:
                return output, kept
            overwritten |= changed


def _keep(kept, overwritten, tensor):
    tensor = tensor.detach()  # or the graph would hold itself
    kept.append(_Kept(tensor.clone() if len(kept) in overwritten else tensor))
    return kept[-1]


class _Kept:
    def __init__(self, tensor):
        self.tensor, self.version = tensor, tensor._version

    @property
    def changed(self):
        return self.tensor._version != self.version

    def get(self):
        if self.changed:
            raise RuntimeError("something that autograd keeps of a block was written over after the block: no gradient is right.")
        return self.tensor


class _Again:
    """Stands in for what autograd keeps of one run of a block: numbers, until the first of them is wanted."""

    def __init__(self, run_keeping):
        self.run_keeping, self.count, self.kept = run_keeping, 0, {}

    def number(self, tensor):
        self.count += 1
        return self.count - 1

    def tensor(self, number):
        if number not in self.kept:
            with torch.enable_grad():  # off during a backward pass
                _, kept = self.run_keeping()
            if len(kept) != self.count:
                raise RuntimeError("a block did not do the same when it was run again: no gradient is right.")
            self.kept = dict(enumerate(kept))
        return self.kept.pop(number).get()
