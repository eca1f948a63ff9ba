"""A LoRA whose strength is guidance: taught so, each strength is the teacher at its scale, which one taught at strength 1 is not."""

from functools import partial

import torch
from comfyui_distillery.distill.batch import Data
from comfyui_distillery.distill.lora import LoraSet
from comfyui_distillery.distill.objectives import OBJECTIVES
from comfyui_distillery.distill.recipe import Recipe
from comfyui_distillery.distill.roles import TEACHER, Roles
from comfyui_distillery.distill.train import Training

from .distilling import LEVELS, Conds

SCALE, WIDTH, CHANNELS = 4.0, 48, 4
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


class Network(Roles):
    """A frozen network of three layers, far from linear in its condition, and a LoRA on it."""

    def __init__(self, path, seed=0):
        fork = torch.Generator().manual_seed(seed)
        sizes = [(CHANNELS + 2, WIDTH), (WIDTH, WIDTH), (WIDTH, CHANNELS)]
        self.path, self.layers = path, {str(i): torch.nn.Linear(*size).requires_grad_(False) for i, size in enumerate(sizes)}
        for layer in self.layers.values():
            layer.weight.copy_(2.5 * torch.randn(layer.weight.shape, generator=fork) / layer.in_features**0.5)
            layer.bias.copy_(0.3 * torch.randn(layer.bias.shape, generator=fork))
        self.lora = LoraSet.create(self.layers, 8, generator=fork)

    def __call__(self, role, x, sigma, cond, strength=1.0):
        numbers = torch.tensor(cond.numbers, dtype=x.dtype)
        hidden = torch.cat([x, sigma[:, None], numbers[:, None]], 1)
        for path, layer in self.layers.items():
            output = layer(hidden)
            if role != TEACHER:
                output = output + self.lora[path](hidden, strength=strength)
            hidden = torch.nn.functional.silu(output)
        return output


def taught(strength_is_guidance):
    """A Network whose LoRA has learnt guidance, by the whole of a run."""
    levels = LEVELS["flow"]
    roles = Network(levels.path)
    recipe = Recipe(
        "guidance", {"scale": SCALE, "strength_is_guidance": strength_is_guidance, "weight": "x0"},
        optimiser={"lr": 0.01, "ema": 0.0, "warmup": 10}, run={"steps": 500, "batch": 32},
    )  # fmt: skip
    clean = torch.randn(256, CHANNELS, generator=torch.Generator().manual_seed(1))
    data = Data(clean, Conds([1] * 256), Conds([0]), levels, seed=0, size=32)
    Training(partial(OBJECTIVES["guidance"], roles, **recipe.knobs), data, roles.lora, recipe).run()
    return roles


def errors(roles):
    """At each strength: how far the student is from the teacher at that strength's scale, relative to what full guidance changes."""
    fork = torch.Generator().manual_seed(2)
    x, sigma = torch.randn(2000, CHANNELS, generator=fork), torch.rand(2000, generator=fork)
    cond, negative = Conds([1] * 2000), Conds([0] * 2000)
    with torch.no_grad():
        whole = (roles.guided(x, sigma, cond, negative, SCALE) - roles(TEACHER, x, sigma, cond)).norm()
        return [
            float((roles("student", x, sigma, cond, strength) - roles.guided(x, sigma, cond, negative, 1 + strength * (SCALE - 1))).norm() / whole)
            for strength in STRENGTHS
        ]  # fmt: skip


def test_strength_is_guidance_where_it_was_taught():
    """Nearer to the teacher at low strengths than a LoRA taught at strength 1 alone, for a little at strength 1."""
    slider, fixed = errors(taught(True)), errors(taught(False))
    assert all(error < 0.2 * strength for error, strength in zip(slider, STRENGTHS))  # a LoRA of zeros would be off by the strength
    assert slider[0] < 0.85 * fixed[0] and slider[1] < 0.95 * fixed[1] and slider[3] < 1.3 * fixed[3]
