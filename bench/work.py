"""How much of a network's arithmetic was done: the same yardstick for every cache, wherever in the network it skips."""

import torch


class Work:
    """While it lasts, counts the multiplications in the linear and convolution layers of a MODEL's network.

    Attention's own products are left out. The hooks that count take as much of an uncached run's time as of a cached one's.
    """

    def __init__(self, model):
        self.layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
        self.done = 0

    def __enter__(self):
        self.hooks = [layer.register_forward_hook(self.count) for layer in self.layers]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def count(self, layer, given, output):
        self.done += output.numel() * layer.weight.shape[1:].numel()

    def take(self):
        """What was counted since the last time."""
        done, self.done = self.done, 0
        return done
