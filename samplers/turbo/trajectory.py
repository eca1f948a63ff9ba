"""The noise levels of a run with a distilled model, from its profile."""

from math import gamma

import torch

from ..core import check_sigmas
from ..schedules.distilled import lcm_timesteps
from ..schedules.timesteps import levels_between

TRAINED_AT = 1000  # timesteps of every network that is no flow; profiles name them by number
DISTILLED_AT = 50  # timesteps of LCM's and TCD's distillation, of which their schedulers pick; original_inference_steps
ON_LEVEL = 1e-4  # as a share of the model's time, a tenth of a timestep: denoise 0.5 includes the level at 0.5


def sigmas_of(profile, steps, path, table, denoise=1.0, tokens=None):
    """The noise levels at which the student is evaluated, and 0: float32, falling, (n + 1,).

    steps: one of profile.steps. path: of the model as it will be sampled. table: its noise levels at its timesteps, (T,), rising,
    float64 (see schedules/timesteps.py); None where it has none. tokens: how many its transformer makes of one latent.
    denoise: above 0, at most 1. Below 1 a student that knows "listed" levels only gets those at or below that share of its time.
    One that knows "any" gets the last steps * denoise of the run, rounded down, or up on flow, as diffusers' image-to-image
    pipelines do; with spacing "lcm" it gets all its steps within the share, as LCMScheduler's strength does. A student that starts
    from unit noise runs whole or not at all. ValueError that names what is offered.
    """
    check_run(profile, steps, path, table, denoise)
    if profile.spacing == "lcm":
        sigmas = lcm_levels(profile, steps, path, table, denoise)
    else:
        sigmas, times = full_run(profile, steps, path, table, tokens)
        sigmas = sigmas[kept(profile, steps, times, denoise) :]
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).float()
    check_sigmas(sigmas)
    return sigmas


def check_run(profile, steps, path, table, denoise):
    if steps not in profile.steps:
        raise ValueError(
            f"steps is {steps}, and the profile {profile.key} offers {listed(profile.steps)}. Set steps to one of these, or to 0 for "
            f"{profile.default_steps}."
        )
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise is {denoise:g}: it must be above 0 and at most 1.")
    if profile.is_flow != path.is_flow:
        raise ValueError(
            f"the profile {profile.key} is for a model that predicts {profile.prediction}, and this one predicts {path.prediction}. "
            "Load the model that the profile is for, or choose another profile."
        )
    if table is None and profile.unit != "sigmas" and not (profile.is_flow and profile.shift is not None):
        raise ValueError(
            f"the profile {profile.key} names timesteps, and this model has none: it was trained on continuous noise levels. Choose "
            "another profile."
        )
    check_table(profile, table)
    if denoise < 1 and profile.knobs.get("start") == "unit_noise":
        raise ValueError(
            f"denoise is {denoise:g}: the student of the profile {profile.key} makes a picture of noise alone and cannot take one to "
            "change. Set denoise to 1 on an empty latent, or choose a profile of several steps."
        )


def check_table(profile, table):
    """ValueError where a profile counts timesteps and the table has others than it means.

    Core's ModelSamplingDiscrete leaves every 20th, 19 to 999, for lcm. These are the ones that LCM's timesteps are picked from; but
    TCD goes below them, and every other profile counts them all.
    """
    counts = not profile.is_flow and profile.unit != "sigmas"
    if not counts or len(table) == TRAINED_AT or (len(table) == DISTILLED_AT and (profile.spacing, profile.sampler) == ("lcm", "lcm")):
        return
    raise ValueError(
        f"the profile {profile.key} counts {TRAINED_AT} timesteps, and this model has {len(table)}, as ComfyUI's ModelSamplingDiscrete "
        "node leaves with lcm. Connect the MODEL from before that node."
    )


def listed(numbers):
    """1, 2 and 4; 1 to 8."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    *most, last = [str(number) for number in numbers]
    return f"{', '.join(most)} and {last}" if most else last


def lcm_levels(profile, steps, path, table, denoise):
    """LCM's timesteps within the share: those of a table that ends with it."""
    within = int(DISTILLED_AT * denoise)
    if within < steps:
        raise ValueError(
            f"denoise is {denoise:g}, and of the {DISTILLED_AT} timesteps of the profile {profile.key} only {within} lie within it. Lower "
            f"steps to that, or raise denoise to {steps / DISTILLED_AT:.2g}."
        )
    return lcm_timesteps(steps, 0.0, 0.0, path=path, table=table[: within * (len(table) // DISTILLED_AT)], original_steps=within)[:-1]


def full_run(profile, steps, path, table, tokens):
    """(sigmas, times), (steps,) float64 each: the levels of a whole run, and their shares of the model's time, 0 to 1.

    On flow spacing "linspace" goes evenly from time 1 down to the number that is the noise level at time 0.001, and shifts that:
    as FlowMatchEulerDiscreteScheduler does where a pipeline gives it no sigmas (SD3), and Stability's own sampler. "beta" spreads
    the range of "trailing" as its use_beta_sigmas does: Lee et al. 2024, arXiv:2407.12173.
    """
    if profile.unit == "sigmas":
        sigmas = torch.tensor(profile.points[steps], dtype=torch.float64)
        return sigmas, time_of(sigmas, path, table)
    if not profile.is_flow:
        entries = torch.tensor(profile.points[steps], dtype=torch.float64) if profile.points else trailing_entries(steps, len(table))
        return levels_between(entries, path, table), (entries + 1) / len(table)
    shift = profile.shift_at(tokens, steps)
    if profile.points:
        times = torch.tensor(profile.points[steps], dtype=torch.float64)
    else:
        times = 1 - torch.arange(steps, dtype=torch.float64) / steps

    def levels(times):
        return levels_between(times * len(table) - 1, path, table) if shift is None else shifted(times, shift)

    if profile.spacing == "beta":
        lowest = levels(times)[-1]
        return lowest + (1 - lowest) * beta_quantiles(torch.linspace(1, 0, steps, dtype=torch.float64)), times
    if profile.spacing == "linspace":
        lowest = levels(torch.tensor([0.001], dtype=torch.float64))
        times = 1 + (lowest - 1) * torch.linspace(0, 1, steps, dtype=torch.float64)
    return levels(times), times


def beta_quantiles(shares, shape=0.6):
    """Where a Beta(shape, shape) variable has these shares of its mass below it: (n,) float64, by halving an interval."""
    mirrored = shares > 0.5
    wanted = torch.where(mirrored, 1 - shares, shares)
    k = torch.arange(60, dtype=torch.float64)
    ratios = torch.cat([k.new_ones(1), ((k[:-1] + 1 - shape) / (k[:-1] + 1)).cumprod(0)]) / (shape + k)
    whole = gamma(shape) ** 2 / gamma(2 * shape)
    low, high = torch.zeros_like(shares), torch.full_like(shares, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        mass = middle**shape * (ratios * middle[:, None] ** k).sum(1) / whole  # the incomplete beta integral as a series
        low, high = torch.where(mass < wanted, middle, low), torch.where(mass < wanted, high, middle)
    return torch.where(mirrored, 1 - high, high)


def trailing_entries(steps, count):
    """From the last timestep in steps of count / steps. Lin et al. 2023, arXiv:2305.08891, table 2; SCHEDULES' trailing."""
    return (count - torch.arange(steps, dtype=torch.float64) * count / steps).round() - 1


def time_of(sigmas, path, table):
    """The share of the model's time at each noise level: its place in the table, or where there is none the path's own time."""
    if table is None:
        return path.time(sigmas)
    return torch.searchsorted(table, sigmas * (1 + 1e-5), right=True) / len(table)


def shifted(times, shift):
    """Esser et al. 2024 (SD3), arXiv:2403.03206, equation 23."""
    return shift * times / (1 + (shift - 1) * times)


def kept(profile, steps, times, denoise):
    """The index of the first level of the run that is used at this denoise."""
    if denoise == 1:
        return 0
    if profile.trained == "any":
        count = steps - int(steps - steps * denoise) if profile.is_flow else int(steps * denoise)
        remedy = f"denoise to {1 / steps:.3g} or more, or steps"
    else:
        count = int((times <= denoise + ON_LEVEL).sum())
        remedy = f"denoise to {float(times[-1]):.3g} or more"
    if count == 0:
        raise ValueError(
            f"denoise is {denoise:g}: of the {steps} steps of the profile {profile.key} none lies within it. Raise {remedy}."
        )
    return steps - count
