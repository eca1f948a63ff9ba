"""One training loop for all bundled models: progress, averaged weights, checkpoints that a killed run resumes from.

Under ``torchrun`` each process takes its own batches and all take the same steps; the first one writes.
"""

import json
import os
import random
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils import parametrize
from tqdm import tqdm

from . import ROOT, shapes

CACHE = ROOT / ".cache" / "train"
MODELS = ROOT / "models"


def scenes_for(purpose, step, count):
    """The same scenes for the same (purpose, step), whatever ran before."""
    rng = random.Random(f"{purpose} {step}")
    return [shapes.random_scene(rng) for _ in range(count)], rng


def autocast(device):
    return torch.autocast(device, torch.bfloat16)


def half(network):
    return {k: v.half() for k, v in network.state_dict().items()}


def save(path, tensors, metadata):
    """Write a safetensors file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata=metadata)
    part.chmod(0o644)  # safetensors leaves it to its owner alone
    part.replace(path)


def load(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (no iterator)


def join_workers():
    """Under torchrun, meet the other workers."""
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=timedelta(hours=1))


def workers():
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_all_workers(mine):
    """The rows of all workers' tensors of one shape, dealt out in turn: worker 0's first, worker 1's first, ..."""
    count = workers()[1]
    if count == 1:
        return mine
    found = [torch.empty_like(mine) for _ in range(count)]
    dist.all_gather(found, mine)
    return torch.stack(found, 1).flatten(0, 1)


def average_gradients(parameters):
    """Give every worker the mean of all workers' gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def learning_rate(step, steps, peak, warmup=200):
    """Linear up, then flat for a third of the way, then linear down to nothing."""
    return peak * min(1, (step + 1) / warmup, 1.5 * (1 - step / steps))


class Average:
    """Exponential moving average of parameters; short at first, so that it forgets the initial ones."""

    def __init__(self, parameters, decay):
        self.decay, self.values = decay, [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)


class Unflatten(torch.nn.Module):
    """Keeps the kernel (out, in, height, width) of a convolution as the matrix (out, in * height * width)."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, matrix):
        return matrix.view(self.shape)

    def right_inverse(self, kernel):
        return kernel.flatten(1)


def as_matrices(network):
    """Let Muon, which takes only matrices, train the kernels of ``network``'s convolutions."""
    for module in list(network.modules()):
        if isinstance(module, torch.nn.Conv2d):
            parametrize.register_parametrization(module, "weight", Unflatten(module.weight.shape))


def as_kernels(network):
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")


def make_optimisers(network, muon):
    """AdamW; with ``muon``, for all but the weight matrices, which Muon (torch's own) updates as whole matrices."""
    matrices = [m.weight for m in network.modules() if isinstance(m, torch.nn.Linear)]
    matrices += [m.parametrizations.weight.original for m in network.modules() if parametrize.is_parametrized(m)]
    linear = matrices if muon else []
    others = [p for p in network.parameters() if not any(p is w for w in linear)]
    optimisers = [torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.01)]
    if linear:
        optimisers.append(torch.optim.Muon(linear, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimisers


def train(network, loss, steps, folder, *, peak, muon=False, decay=0.999, minutes=2.0):
    """Minimise ``loss(step)`` over ``network``'s parameters and leave the averaged ones in it; returns seconds spent.

    ``loss`` must draw its randomness from the step alone: a resumed run then continues exactly where it was cut. Of
    several workers, each is given steps of its own.
    A checkpoint is written to ``folder`` every few ``minutes``, at the end, and when interrupted.
    """
    parameters = list(network.parameters())
    optimisers = make_optimisers(network, muon)
    average = Average(parameters, decay)
    path = Path(folder) / "checkpoint.safetensors"
    first, spent = 0, 0.0
    worker, count = workers()
    if path.exists():
        first, spent = restore(path, parameters, optimisers, average)
    began = saved = time.monotonic()

    def checkpoint(step):
        tensors = {f"average.{i}": v for i, v in enumerate(average.values)}
        for i, p in enumerate(parameters):
            tensors[f"weight.{i}"] = p
            for optimiser in optimisers:
                tensors |= {f"{key}.{i}": v for key, v in optimiser.state.get(p, {}).items()}
        progress = {"step": step, "seconds": spent + time.monotonic() - began}
        save(path, tensors, {"progress": json.dumps(progress)})

    step, bar = first, tqdm(total=steps, initial=first, desc=Path(folder).name, mininterval=5, disable=worker > 0)
    try:
        while step < steps:
            value = loss(step * count + worker)
            network.zero_grad()
            value.backward()
            if count > 1:
                average_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(step, steps, peak)
                optimiser.step()
            average.update(parameters, step)
            step += 1
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
            if worker == 0 and time.monotonic() - saved > 60 * minutes:
                checkpoint(step)
                saved = time.monotonic()
    finally:
        bar.close()
        if worker == 0 and step > first:
            checkpoint(step)
    with torch.no_grad():
        for p, v in zip(parameters, average.values):
            p.copy_(v)
    return spent + time.monotonic() - began


def restore(path, parameters, optimisers, average):
    tensors, metadata = load(path)
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(tensors[f"weight.{i}"])
            average.values[i].copy_(tensors[f"average.{i}"])
            for optimiser, keys in zip(optimisers, (("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",))):
                if any(p is q for q in optimiser.param_groups[0]["params"]) and f"{keys[-1]}.{i}" in tensors:
                    on_device = {key: tensors[f"{key}.{i}"].to(p.device) for key in keys if key != "step"}
                    optimiser.state[p] = on_device | ({"step": tensors[f"step.{i}"]} if "step" in keys else {})
    progress = json.loads(metadata["progress"])
    return progress["step"], progress["seconds"]
