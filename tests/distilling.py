"""Roles without ComfyUI: a teacher whose answer is known, students as small networks beside it, and the data they learn from."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from comfyui_distillery.distill.batch import Batch, Data
from comfyui_distillery.distill.draws import Draws
from comfyui_distillery.distill.levels import Levels
from comfyui_distillery.distill.objectives import OBJECTIVES
from comfyui_distillery.distill.recipe import Recipe
from comfyui_distillery.distill.roles import TEACHER, Roles
from comfyui_distillery.distill.train import Events, Training

from .problems import EPS, FLOW, Gaussian, randn

STEPS = 12
LEVELS = {
    "eps": Levels.between(EPS, 0.03, 14.6),
    "flow": Levels(FLOW, torch.linspace(0.001, 1, 1000, dtype=torch.float64)),
}


class Conds:
    """Conditions that are whole numbers: which teacher is meant."""

    def __init__(self, numbers):
        self.numbers = tuple(numbers)

    def __getitem__(self, indices):
        return Conds(self.numbers[i] for i in indices)

    def __len__(self):
        return len(self.numbers)


class Plain(Roles):
    """teachers: denoisers, one for each number a condition may be. students: {role: module(x, sigma, denoised, strength)}, which is
    given the teacher's answer and returns its own. calls: (role, items, whether with gradients) of every call."""

    def __init__(self, path, teachers, students):
        self.path, self.teachers, self.students, self.calls = path, teachers, students, []

    def __call__(self, role, x, sigma, cond, strength=1.0):
        self.calls.append((role, len(x), torch.is_grad_enabled()))
        answers = [self.teachers[number](x[i : i + 1], sigma[i : i + 1]) for i, number in enumerate(cond.numbers)]
        same = len(set(cond.numbers)) == 1
        denoised = self.teachers[cond.numbers[0]](x, sigma) if same else torch.cat(answers)
        return denoised if role == TEACHER else self.students[role](x, sigma, denoised, strength)


class Affine(torch.nn.Module):
    """D = a x + b, and for each of ``sigmas`` an a and a b of its own in every element: all that Gaussian data asks for."""

    def __init__(self, sigmas, shape, dtype=torch.float64):
        super().__init__()
        self.sigmas = sigmas
        self.a = torch.nn.Parameter(torch.zeros(len(sigmas), *shape, dtype=dtype))
        self.b = torch.nn.Parameter(torch.zeros(len(sigmas), *shape, dtype=dtype))

    def forward(self, x, sigma, denoised=None, strength=1.0):
        level = (sigma[:, None] - self.sigmas[None]).abs().argmin(1)
        return self.a[level] * x + self.b[level]


class Exact(torch.nn.Module):
    """A student that is a given function of (x, sigma), and has a parameter that changes nothing at its value, 0."""

    def __init__(self, function):
        super().__init__()
        self.function, self.shift = function, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, sigma, denoised=None, strength=1.0):
        return self.function(x, sigma) + strength * self.shift


def two_gaussians(path, shape=(2, 3, 2)):
    """Two classes of one spread in every element: (all data as the negative's, class 1)."""
    count = torch.Size(shape).numel()
    std = torch.linspace(0.4, 1.6, count, dtype=torch.float64).view(1, *shape)
    mean = torch.linspace(-1, 1, count, dtype=torch.float64).view(1, *shape)
    return [Gaussian(path, mean, std), Gaussian(path, 0.3 - mean, std)]


def batch_of(data, levels, count=64, step=0, seed=0, cond=1, negative=0, time=None, progress=0.0, items=None):
    """A Batch of clean items of a Gaussian, all of condition ``cond``, float64. items: only these places of it."""
    generator = torch.Generator().manual_seed(seed + 1000 * step)
    clean = data.mean + data.std * torch.randn(count, *data.mean.shape[1:], generator=generator, dtype=torch.float64)
    items = tuple(range(count)) if items is None else tuple(items)
    draws = Draws(seed, step, items)
    clean = clean[list(items)]
    time = draws.uniform("time").clamp(min=0.02) if time is None else torch.full((len(items),), time, dtype=torch.float64)
    conds = Conds([cond] * len(items)), Conds([negative] * len(items))
    return Batch(clean, draws.normal("noise", clean), time, levels, *conds, draws, progress)


@dataclass(frozen=True)
class Moved:
    """The consistency function of a Gaussian: where its ODE takes x from sigma to the end, exactly."""

    data: Gaussian
    end: float = 0.0

    def __call__(self, x, sigma):
        return self.data.exact(x, sigma, torch.full_like(sigma, self.end))


def fit(loss, module, batches, steps=40, lr=1.0):
    """Minimise the mean loss over fixed batches, by L-BFGS: exact on quadratic losses."""
    optimiser = torch.optim.LBFGS(
        module.parameters(), lr=lr, max_iter=steps, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        total = sum(loss(batch).mean() for batch in batches)
        total.backward()
        return total

    optimiser.step(closure)
    return closure().item()


class Recorded(Events):
    """What a run told."""

    def __init__(self):
        self.rows, self.warnings, self.planned_steps = [], [], []

    def planned(self, steps):
        self.planned_steps.append(steps)

    def stepped(self, row):
        self.rows.append(row)

    def warned(self, text):
        self.warnings.append(text)


def guided_run(recipe, kind=Plain, student=None, fingerprint="toy", **options):
    """A Training of an affine student, one for each quarter of the levels, by a recipe of guidance on Gaussian data."""
    levels, shape = LEVELS["flow"], (2, 3, 2)
    data = two_gaussians(levels.path, shape)
    student = student or Affine(levels.grid(4)[:4], shape)
    average = copy.deepcopy(student)
    roles = kind(levels.path, data, {"student": student, "ema": average})
    clean = data[1].mean + data[1].std * randn(10, *shape)
    source = Data(clean, Conds([1] * 10), Conds([0]), levels, seed=recipe.run["seed"], size=recipe.run["batch"])
    loss = partial(OBJECTIVES[recipe.objective], roles, **recipe.knobs)
    recorded = {"parts": {"slope": [student.a], "offset": [student.b]}, "times": lambda batch: batch.shown[-1]}
    return Training(loss, source, student, recipe, average=average, fingerprint=fingerprint, **{**recorded, **options})


def guided_recipe(name="adamw", steps=STEPS, **run):
    optimiser = {"name": name, "lr": 0.02, "warmup": 2, "ema": 0.9}
    run = {"steps": steps, "batch": 4, "save_every": 3, **run}
    return Recipe("guidance", {"scale": 3.0, "weight": "x0"}, optimiser=optimiser, run=run)


def state(training):
    """All that a run is made of, but for the time it took."""
    modules = (training.student, training.average)
    tensors = [p.detach().clone() for module in modules for p in module.parameters()]
    states = [training.optimiser.state[p] for p in training.params]
    moments = [values[name] for values in states for name in sorted(values)]
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in training.counters.history]
    return tensors, moments, rows


class Stop(BaseException):
    """As ComfyUI's interruption is: no Exception."""


class StopAfter(Events):
    def __init__(self, step):
        self.step = step

    def stepped(self, row):
        if row["step"] == self.step:
            raise Stop
