"""This pack's solvers as sampler names in ComfyUI's own nodes, such as KSampler. Only where the user asks for it."""

import logging
import os

import comfy.k_diffusion.sampling
import comfy.samplers

from ..samplers.core import complete
from ..samplers.solvers import SOLVERS
from . import host

SWITCH = "DISTILLERY_REGISTER_SAMPLERS"  # environment variable: 1 to ask for it
PREFIX = "distillery_"
log = logging.getLogger(__name__)


def register_if_asked():
    """Append our names to core's lists, in place. Core finds the functions by name where k-diffusion's own are.

    A name that someone else holds stays theirs. Solvers run with their default knobs.
    """
    if os.environ.get(SWITCH, "0") in ("", "0"):
        return
    for key, solver in SOLVERS.items():
        name = PREFIX + key
        if hasattr(comfy.k_diffusion.sampling, f"sample_{name}") or name in comfy.samplers.SAMPLER_NAMES:
            log.warning("Distillery: the sampler name %s is taken and stays as it is", name)
            continue
        function = host.as_sampler(solver, complete(solver.knobs, {})).sampler_function
        setattr(comfy.k_diffusion.sampling, f"sample_{name}", function)
        for names in (comfy.samplers.KSAMPLER_NAMES, comfy.samplers.SAMPLER_NAMES):
            names.append(name)
