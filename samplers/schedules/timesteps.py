"""Steps even in the model's timesteps. Lin et al. 2023, arXiv:2305.08891, table 2; the names are diffusers'.

A table holds the model's noise levels at its timesteps, (T,), rising, float64. Entry k is timestep k of an eps or v model,
which was trained at these alone, so timesteps are whole there; on flow it is time (k + 1) / T, after the model's shift.
"""

import torch

from ..core import Knob
from .schedule import Schedule

THOUSAND = 1000  # what a flow's time 1 is called as a timestep


def trailing(n, sigma_min, sigma_max, *, path, table):
    """From the last timestep in steps of T / n: the noisiest level is always visited, as few steps need."""
    count = checked_count(n, table)
    return levels(whole(count - torch.arange(n, dtype=torch.float64) * count / n, path) - 1, path, table)


def leading(n, sigma_min, sigma_max, *, path, table, steps_offset=1):
    """Up from timestep steps_offset in steps of floor(T / n): ends there, and begins below the noisiest level."""
    count = checked_count(n, table)
    entries = torch.arange(n - 1, -1, -1, dtype=torch.float64) * (count // n) + steps_offset
    if entries[0] > count - 1:
        raise ValueError(
            f"steps_offset is {steps_offset}: with {n} steps the first would be timestep {entries[0]:.0f}, and the model's "
            f"last is {count - 1}. Lower steps_offset."
        )
    return levels(entries, path, table)


def linspace(n, sigma_min, sigma_max, *, path, table):
    """Evenly from the last timestep to the first, both visited."""
    count = checked_count(n, table)
    return levels(whole(torch.linspace(count - 1, 0, n, dtype=torch.float64), path), path, table)


def checked_count(n, table):
    if n > len(table):
        raise ValueError(
            f"steps / denoise is {n}, and this model has {len(table)} timesteps, no more steps than that. Lower steps or "
            "raise denoise."
        )
    return len(table)


def whole(timesteps, path):
    return timesteps if path.is_flow else timesteps.round()


def levels(entries, path, table):
    return torch.cat([levels_between(entries, path, table), table.new_zeros(1)])


def levels_between(entries, path, table):
    """Noise levels at entries of the table, whole or not: between two, even in log sigma, or on flow in sigma.

    Entry -1 of a flow is clean.
    """
    if path.is_flow:
        values, entries = torch.nn.functional.pad(table, (1, 0)), entries + 1
    else:
        values = table.log()
    below = entries.floor().long().clamp(max=len(values) - 2)
    between = torch.lerp(values[below], values[below + 1], entries - below)
    return between if path.is_flow else between.exp()


def levels_at(timesteps, path, table):
    """Noise levels at these timesteps, (n,) float64, 0 to T - 1; on flow 0 (clean) to 1000, before the model's shift."""
    last = THOUSAND if path.is_flow else len(table) - 1
    for i, timestep in enumerate(timesteps.tolist()):
        if not 0 <= timestep <= last:
            raise ValueError(f"points[{i}] is {timestep:g}: this model's timesteps go from 0 to {last}.")
    entries = timesteps / THOUSAND * len(table) - 1 if path.is_flow else timesteps
    return levels_between(entries, path, table)


SOURCE = "Lin et al. 2023, arXiv:2305.08891"
SCHEDULES = {
    "trailing": Schedule(
        trailing, "Trailing timesteps", SOURCE,
        "distilled models (turbo, Lightning, LCM) and few steps; on flow it is the plain even grid",
    ),
    "leading": Schedule(
        leading, "Leading timesteps", SOURCE,
        "repeating what older pipelines did (DDIM, PNDM); it starts below full noise",
        (
            Knob(
                "steps_offset", 1, "The last timestep before 0. 1 in the settings of SD1 and SDXL, 0 where diffusers' "
                "settings name none.", min=0, max=100, step=1, advanced=True,
            ),
        ),
    ),
    "linspace": Schedule(linspace, "Linspace timesteps", SOURCE, "20 steps and more, from the noisiest to the finest level"),
}
