"""Networks run with some of their blocks replaced: on the instances, for a while, without a copy of any forward.

Use inside an APPLY_MODEL wrapper, the only one that fires for every network: ``executor.class_obj.diffusion_model``.
"""

from contextlib import contextmanager
from functools import partial

import torch

from .architectures import NOT_DESCRIBED, blocks_of, import_path


@contextmanager
def forwards(replacements):
    """While it lasts, module(*args, **kwargs) runs replacement(forward, *args, **kwargs) for each module: replacement.

    forward is what the module ran before, another pack's override included, and what it runs again afterwards.
    """
    before = {module: vars(module).get("forward") for module in replacements}
    try:
        for module, replacement in replacements.items():
            module.forward = partial(replacement, module.forward)
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def dropped(network, indices):
    """While it lasts, the network runs without these of its blocks, numbered from 0 as in ``blocks_of``.

    ValueError for a network whose blocks are not known, and for a number that it does not have.
    """
    blocks, indices = blocks_of(network), list(indices)
    if not blocks:
        path = import_path(type(network))
        reason = NOT_DESCRIBED.get(path, "is not a network whose blocks this pack knows")
        raise ValueError(f"model cannot leave out blocks: {path} {reason}. Use another model, or another method.")
    for index in indices:
        if not 0 <= index < len(blocks):
            raise ValueError(f"blocks names {index}, and this model has blocks 0 to {len(blocks) - 1}.")
    return forwards({blocks[index].module: _handing_on(blocks[index].group) for index in indices})


def _handing_on(group):
    def hand_on(forward, *args, **kwargs):
        return group.output(tuple(map(_fresh, group.inputs(args, kwargs))))

    return hand_on


def _fresh(stream):
    """A copy: callers may keep what they gave (VACE), and add to what comes back in place (ControlNet)."""
    if isinstance(stream, (tuple, list)):
        return type(stream)(map(_fresh, stream))
    return stream.clone() if torch.is_tensor(stream) else stream
