"""One scheduler with its config as a SAMPLER and its SIGMAS. Each run has a scheduler of its own, so no history outlives it."""

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from .. import noise as noises
from ..core import check_sigmas, denoiser
from . import config
from .catalogue import USABLE
from .levels import calls_of, is_flow, level_for, output

LARGEST = 1e-3  # two tables of noise levels are one where no entry differs by more than this share


@dataclass(frozen=True)
class Bridge:
    """A scheduler, and what a pipeline would pass it. ``made`` is never stepped: runs work on copies, some take a second to make.

    grid: "own", as set_timesteps spaces its steps; "even", sigmas 1 to 1 / steps, as the pipelines of Flux, Qwen-Image and others
    pass them; "timesteps" or "sigmas": ``values``, falling. mu: of config's dynamic shifting. eta: None for the
    scheduler's own. path, sigma_max: of the MODEL.
    """

    name: str
    made: object
    steps: int
    path: object
    sigma_max: float
    grid: str = "own"
    values: tuple[float, ...] = ()
    mu: float | None = None
    eta: float | None = None

    def scheduler(self, device="cpu"):
        """A new one, its timesteps set. ValueError with diffusers' own words where it cannot."""
        scheduler = deepcopy(self.made)
        try:
            scheduler.set_timesteps(device=device, **self._spacing(scheduler))
        except config.FAULTS as fault:
            raise ValueError(f"{self.name} cannot space its steps so, with steps {self.steps}: {fault}") from fault
        return scheduler

    def _spacing(self, scheduler):
        """The arguments of set_timesteps."""
        takes = config.arguments(scheduler.set_timesteps)
        arguments = {} if self.mu is None else {"mu": self.mu}
        if self.grid == "own":
            if "intermediate_timesteps" in takes and self.steps != 2:
                arguments["intermediate_timesteps"] = None
            return arguments | {"num_inference_steps": self.steps}
        if self.grid == "timesteps":
            if "timesteps" not in takes or USABLE[self.name].state == "flow":
                raise ValueError("it takes no list of timesteps")
            if USABLE[self.name].state == "trigflow":
                angles = [*self.values, 0.0]
                return {"num_inference_steps": len(self.values), "timesteps": angles, "max_timesteps": None, "intermediate_timesteps": None}
            return {"timesteps": [int(value) if value == int(value) else value for value in self.values]}
        form = USABLE[self.name].sigmas
        if form is None or (self.grid == "even" and not is_flow(self.name, scheduler)):
            raise ValueError(f"it takes no list of sigmas{' from 1 down' if self.grid == 'even' else ''}")
        levels = [1 - i / self.steps for i in range(self.steps)] if self.grid == "even" else list(self.values)
        return arguments | {"sigmas": torch.tensor([*levels, 0.0]) if form == "with 0" else torch.tensor(levels).numpy()}

    def calls(self, scheduler):
        """[(Call, Level)] of a whole run."""
        try:
            calls = calls_of(self.name, scheduler)
        except IndexError:
            last = scheduler.config.num_train_timesteps - 1
            raise ValueError(
                f"{self.name} would begin at timestep {int(scheduler.timesteps.max())}, and its last is {last}: lower steps, or steps_offset "
                "in config."
            ) from None
        return [(call, level_for(call, self.path, self.sigma_max)) for call in calls]

    def sigmas(self):
        """The noise levels at which the steps begin, and 0: (steps + 1,) float32. ValueError where the MODEL does not know them."""
        calls = self.calls(self.scheduler())
        highest = max(level.at for _, level in calls)
        if not self.path.is_flow and highest > self.sigma_max * (1 + LARGEST):
            raise ValueError(
                f"{self.name} begins at sigma {highest:.6g}, and the noisiest level that model knows is {self.sigma_max:.6g}: set sigma_max or "
                "the betas of config to the model's, or use another scheduler."
            )
        sigmas = torch.tensor([level.at for call, level in calls if call.starts] + [0.0])
        check_sigmas(sigmas)
        return sigmas

    def share(self, denoise):
        """(sigmas of the last share of the steps, a line about it, empty at 1), counted as the image-to-image pipelines do.

        Those of flow models round the share of the steps up, the others down. ValueError where no step is left.
        """
        sigmas = self.sigmas()
        steps = len(sigmas) - 1
        begin = int(steps - steps * denoise) if self.path.is_flow else steps - int(steps * denoise)
        if begin >= steps:
            raise ValueError(f"denoise is {denoise:g} of {steps} steps, which leaves none: raise denoise or steps.")
        return sigmas[begin:], f"Denoise {denoise:g}: the last {steps - begin} of these steps." if begin else ""

    def rehearse(self):
        """Whether it draws noise on its way. ValueError where it cannot finish a run: two are made, on a single number each."""
        x, sigmas = torch.ones(1, 1, 1, 1), self.sigmas()
        try:
            ends = [self.sample(lambda x, sigma, seed: x / 2, x, sigmas, {"seed": seed}) for seed in (1, 2)]
        except config.FAULTS as fault:
            raise ValueError(f"{self.name} fails with this config and {self.steps} steps: {fault}") from fault
        if not all(end.isfinite().all() for end in ends):
            raise ValueError(f"{self.name} gives {ends[0].item()} with this config and {self.steps} steps: change config or steps.")
        return not torch.equal(*ends)

    def sample(self, model, x, sigmas, extra_args=None, callback=None, disable=None, *, noise=None, latent=None):
        """A sampler of k-diffusion's signature. sigmas: this bridge's own, or a stretch of them, from which on it then runs.

        noise, latent: what x was mixed of. With them, a run from the beginning starts as the pipelines start: from noise times
        init_noise_sigma where latent is empty, else from latent + sigma noise.
        """
        scheduler = self.scheduler(x.device)
        calls, begin, end = self._stretch(scheduler, sigmas)  # end: the call that would come next, None at sigma 0
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        first, level = calls[0]
        state = x * (first.size / level.gain)
        if begin == 0 and noise is not None:
            if not latent.any():
                scale = first.size if USABLE[self.name].state == "trigflow" else getattr(scheduler, "init_noise_sigma", 1.0)
                state = noise.to(x) * float(scale)
            elif not self.path.is_flow:
                state = (latent.to(x) + level.at * noise.to(x)) * (first.size / level.gain)
        step = Stepper(self, scheduler, x, extra_args, first.index)
        denoise = denoiser(model, extra_args)
        for (call, level), following in pairwise([*calls, end or (None, None)]):
            seen = state * (level.gain / call.size)
            sigma = torch.tensor(level.at, dtype=x.dtype, device=x.device)
            denoised = denoise(seen, sigma)
            if call.starts and callback is not None:
                callback({"x": seen, "i": call.step - begin, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            told = output(self.name, scheduler, call, level, state, denoised)
            state = step(told, call, state, following[0]).to(x)
        if end is None:
            return state / call.size if USABLE[self.name].state == "trigflow" else state
        return state * (end[1].gain / end[0].size)

    def _stretch(self, scheduler, sigmas):
        """(the calls that lead from sigmas[0] to sigmas[-1], the step they begin at, the pair at their end or None at 0)."""
        check_sigmas(sigmas)
        calls = self.calls(scheduler)
        starting = [pair for pair in calls if pair[0].starts]
        own = torch.tensor([level.at for _, level in starting] + [0.0], dtype=torch.float64)
        given = sigmas.detach().cpu().double()
        begin = int((own - given[0]).abs().argmin())
        end = begin + len(given) - 1
        if end >= len(own) or not torch.allclose(own[begin : end + 1], given, rtol=1e-4, atol=1e-6):
            raise ValueError(
                f"sigmas go from {given[0]:.6g} to {given[-1]:.6g} in {len(given) - 1} steps, and {self.name} with its {self.steps} steps visits "
                f"{', '.join(f'{value:.4g}' for value in own.tolist())}: connect the SIGMAS of the same node, whole or split."
            )
        chosen = [pair for pair in calls if begin <= pair[0].step < end]
        if USABLE[self.name].calls == "pndm" and begin:
            chosen = self._restarted(scheduler, chosen, calls)
        return chosen, begin, starting[end] if end < len(starting) else None

    def _restarted(self, scheduler, chosen, calls):
        """PNDM counts its calls: where it begins in the middle, its first step needs the slope at its end as well."""
        if not scheduler.config.skip_prk_steps:
            raise ValueError(
                f"{self.name} begins with Runge-Kutta steps, which it cannot in the middle: set skip_prk_steps to true in config, or "
                "use the whole of sigmas and denoise 1."
            )
        first = chosen[0][0]
        slope = [(replace(call, step=first.step, starts=False), level) for call, level in calls if call.index == first.index + 1]
        return [chosen[0], *slope, *chosen[1:]]


class Stepper:
    """One run's calls of ``scheduler.step``, with the arguments that a pipeline gives. Item i draws noise from seed + i alone."""

    def __init__(self, bridge, scheduler, x, extra_args, begin):
        self.bridge, self.scheduler, self.old, self.back = bridge, scheduler, None, None
        self.takes = config.arguments(scheduler.step)
        seeds = [seed ^ noises.RENOISE for seed in noises.item_seeds((extra_args or {}).get("seed") or 0, len(x))]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if hasattr(scheduler, "noise_sampler_seed"):  # a Brownian tree for each item
            seeds = noises.item_seeds(scheduler.noise_sampler_seed, len(x)) if scheduler.noise_sampler_seed is not None else seeds
            scheduler.noise_sampler_seed = seeds
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)

    def __call__(self, told, call, state, following):
        arguments = {"generator": self.generators} if "generator" in self.takes else {}
        if self.bridge.eta is not None:
            arguments["eta"] = self.bridge.eta
        if "prev_timestep" in self.takes and following is not None:
            arguments["prev_timestep"] = following.timestep
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input(state, call.timestep)  # some count their steps by it
        if "old_pred_original_sample" in self.takes:
            arguments |= {"old_pred_original_sample": self.old, "timestep_back": self.back}
        result = self.scheduler.step(model_output=told, timestep=call.timestep, sample=state, return_dict=False, **arguments)
        if "old_pred_original_sample" in self.takes:
            self.old, self.back = result[1], call.timestep
        return result[0]
