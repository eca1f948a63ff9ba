"""A moving average of what is trained: what is saved and used, as it is steadier than the last step."""

import torch


def share(decay, updates):
    """How much of the average to keep at its ``updates``-th update, counted from 0: rises from 0, as 1 - 1/(k + 1), to decay.

    Until it gets there the average is that of all steps so far.
    """
    return min(decay, 1 - 1 / (updates + 1))


@torch.no_grad()
def update(average, module, decay, updates):
    """Move the parameters of ``average`` towards those of ``module``, which has the same, in place."""
    keep = share(decay, updates)
    for kept, new in zip(average.parameters(), module.parameters(), strict=True):
        kept.lerp_(new.to(kept), 1 - keep)
