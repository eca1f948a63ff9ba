"""Denoisers whose answer is known, also as genuine ComfyUI models, so that core's solvers meet them as they meet any model."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from comfyui_distillery.samplers.core import append_dims
from comfyui_distillery.samplers.path import Path

from .hosted import Task, node_classes


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Solvable:
    """A denoiser with a ``path``, whose probability-flow ODE is solved by brute force."""

    def exact(self, x, sigma, sigma_next, steps=3000):
        """Classical Runge-Kutta 4 in even steps of log VE sigma, good to 1e-12 here."""
        x, ve = self.path.to_ve(x, sigma)
        log_ve = torch.linspace(ve.log(), self.path.to_ve(x, sigma_next)[1].log(), steps + 1, dtype=x.dtype)

        def slope(x, log_ve):  # dx / dlog(sigma) = x - denoised
            back, s = self.path.from_ve(x, log_ve.exp())
            return x - self(back, s)

        for a, b in pairwise(log_ve):
            h = b - a
            k1 = slope(x, a)
            k2 = slope(x + h / 2 * k1, a + h / 2)
            k3 = slope(x + h / 2 * k2, a + h / 2)
            k4 = slope(x + h * k3, b)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.path.from_ve(x, log_ve[-1].exp())[0]

    def end(self, x, sigma):
        """Where the ODE takes x (B, *item) from sigma to 0, good to about 1e-9."""
        near_one, near_zero = torch.tensor([1 - 1e-6, 1e-6], dtype=x.dtype)
        if self.path.is_flow and sigma > near_one:  # VE sigma would be infinite: a tiny Euler step first
            x, sigma = x + (near_one - sigma) * (x - self(x, sigma)) / sigma, near_one
        return self(self.exact(x, sigma, near_zero), near_zero)


@dataclass(frozen=True)
class Mixture(Solvable):
    """Data from a few equal, round Gaussians: a curved ODE. centres is (K, *item)."""

    path: Path
    centres: torch.Tensor
    std: float

    def __call__(self, x, sigma):
        sigma = append_dims(sigma.expand(len(x)), x)[:, None]
        alpha = self.path.alpha(sigma)
        gap = x[:, None] - alpha * self.centres
        variance = (alpha * self.std) ** 2 + sigma**2
        weight = torch.softmax((-(gap**2) / (2 * variance)).flatten(2).sum(2), dim=1)
        denoised = self.centres + alpha * self.std**2 / variance * gap
        return torch.einsum("bk,bk...->b...", weight, denoised)

    def start(self, sigma, batch=4, seed=0):
        noise = randn(batch, *self.centres.shape[1:], seed=seed)
        data = self.centres[torch.arange(batch) % len(self.centres)] + self.std * randn(*noise.shape, seed=seed + 1)
        return self.path.alpha(sigma) * data + sigma * noise


@dataclass(frozen=True)
class Guided(Solvable):
    """Classifier-free guidance from all clumps of a mixture towards its first two."""

    everything: Mixture
    scale: float

    @property
    def path(self):
        return self.everything.path

    @property
    def wanted(self):
        return replace(self.everything, centres=self.everything.centres[:2])

    def __call__(self, x, sigma):
        uncond = self.everything(x, sigma)
        return uncond + self.scale * (self.wanted(x, sigma) - uncond)


def mixture(path):
    """Three clumps in two dimensions."""
    return Mixture(path, torch.tensor([[1.0, 0.5], [-1.0, 0.8], [0.2, -1.2]], dtype=torch.float64).view(3, 2, 1, 1), 0.4)


class Network(torch.nn.Module):
    """What a network would output that predicts exactly: noise on the eps path, noise minus data on the flow path.

    context (B, 1, 1) is 1 for the wanted clumps and 0 for all of them.
    """

    dtype = torch.float32

    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def forward(self, x, timesteps, context, transformer_options, **kwargs):
        sigma = transformer_options["sigmas"][:1].double()  # the timestep is rounded to a table of 1000
        scale = 1 if self.problem.path.is_flow else (sigma**2 + 1).sqrt()  # of the input, by core's EPS
        x = x.double() * scale
        denoised = torch.where(append_dims(context[:, 0, 0], x) > 0, self.problem.wanted(x, sigma), self.problem.everything(x, sigma))
        return ((x - denoised) / sigma).to(self.dtype)


def as_task(path, scale=1.0, batch=64):
    """(a Task whose model is the guided mixture, exact end points of its noise)."""
    node_classes()
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models_base

    problem = Guided(mixture(path), scale)
    config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True, "in_channels": 2})
    config.latent_format.latent_channels, config.sampling_settings = 2, {"shift": 1.0}
    kind = comfy.model_base.ModelType.FLOW if path.is_flow else comfy.model_base.ModelType.EPS
    model = comfy.model_base.BaseModel(config, kind)
    model.diffusion_model = Network(problem)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)
    noise = randn(batch, 2, 1, 1, seed=2).float()
    wanted, everything = [[torch.ones(1, 1, 1), {}]], [[torch.zeros(1, 1, 1), {}]]
    task = Task(patcher, wanted, everything, scale, noise, "simple" if path.is_flow else "karras")
    sigma = task.sigmas(1)[0]
    start = model.model_sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), max_denoise=True)
    return task, problem.end(start.double(), sigma.double())
