"""What a step's gradient and loss are made of: by part of the network, and by noise level."""

import math

import torch

THIRDS = ("low noise", "middle", "high noise")  # of the model's time


def clip(params, most):
    """(norm of the whole gradient, norm of each parameter's), numbers; the gradient is then made no longer than ``most``, 0 = any.

    What ``torch.nn.utils.clip_grad_norm_`` does (Pascanu et al. 2012, arXiv:1211.5063), with the norms that it only adds up. One
    transfer from the device. A parameter without a gradient counts 0.
    """
    gradients = [p.grad for p in params if p.grad is not None]
    if not gradients:
        return 0.0, [0.0] * len(params)
    norms = torch.stack(torch._foreach_norm(gradients))
    norm = torch.linalg.vector_norm(norms)
    if most:
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1))
    whole, *found = torch.cat([norm[None], norms]).tolist()
    found = iter(found)
    return whole, [0.0 if p.grad is None else next(found) for p in params]


def of_gradient(parts, norms):
    """{name: its share of the squared norm of the gradient}. parts: {name: numbers of its parameters}. norms: of ``clip``."""
    squares = {name: sum(norms[i] ** 2 for i in numbers) for name, numbers in parts.items()}
    whole = sum(squares.values())
    return {name: square / whole if whole else 0.0 for name, square in squares.items()}


def of_loss(times, losses, size):
    """{third: what its items add to the mean loss of a batch of ``size``}. times: in (0, 1], of the losses of these items."""
    added = dict.fromkeys(THIRDS, 0.0)
    for time, loss in zip(times, losses, strict=True):
        added[THIRDS[min(max(math.ceil(3 * time), 1), 3) - 1]] += loss / size
    return added
