"""Lion: steps of one size, by the sign of the momentum. Chen et al. 2023, arXiv:2302.06675, algorithm 2."""

import torch


class Lion(torch.optim.Optimizer):
    """betas: (of the step, of the momentum). A fifth of AdamW's learning rate and five times its weight decay, as published."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (along, kept), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                direction = torch.lerp(p.grad, momentum, along).sign_()
                p.add_(direction + group["weight_decay"] * p, alpha=-lr)
                momentum.lerp_(p.grad, 1 - kept)
