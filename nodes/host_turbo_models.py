"""What a MODEL is to the turbo profiles: its base, what its network predicts, its file, the profile it carries, and its patches."""

import math
from dataclasses import dataclass, replace

import comfy.model_sampling
import comfy.samplers

from ..samplers.path import Path
from ..samplers.solvers import SOLVERS
from ..samplers.turbo.bases import BASES, bases_of_model
from ..samplers.turbo.detect import telling
from ..samplers.turbo.profile import PREDICTIONS, TurboProfile
from . import host

CARRIED = "distillery_turbo"  # the attachment of a MODEL: its Carried

ALIKE = {"flow": "flux", "cosmos": "cosmos-predict2", "eps": "sd15", "v": "sd15", "x0": "sd15"}  # prediction: a base with such a path


@dataclass(frozen=True)
class Carried:
    """What Load Turbo LoRA leaves on a MODEL. steps: those of the file, None where it is for several. why: in words."""

    profile: TurboProfile
    steps: int | None
    why: str


def carried(model):
    """The Carried of a MODEL, None where no node left one. It survives every node that clones the MODEL."""
    return model.get_attachment(CARRIED)


def carries(model, profile):
    return carried(model) is not None and carried(model).profile == profile


def carrying(model, profile, steps, why):
    """A clone that tells Turbo Sampling which profile it is to be sampled with."""
    model = model.clone()
    model.set_attachments(CARRIED, Carried(profile, steps, why))
    return model


def carrying_recorded(model, recorded, name, licence=None):
    """``carrying`` what a LoRA of this pack records of itself; the MODEL as it is where its prediction type is of no profile.

    The LoRA's own fingerprint has told that the MODEL is the right one, also where it is of no base that is known here.
    """
    prediction, bases = prediction_of(model), bases_of(model)
    if prediction not in PREDICTIONS:
        return model
    profile = TurboProfile.recorded(recorded, bases[0] if bases else ALIKE[prediction], title=name)
    profile = replace(profile, prediction=prediction, licence=licence or profile.licence)
    return carrying(model, profile, recorded.steps, f"the LoRA {name} records it")


def bases_of(model):
    """The keys of BASES that a MODEL may be, by the class that core loaded it as and its layers."""
    return bases_of_model(class_of(model), model.model.model_config.unet_config)


def class_of(model):
    """The name of the class in comfy.supported_models that core loaded a MODEL as."""
    return type(model.model.model_config).__name__


def title_of(model):
    """What a MODEL is, for messages: the titles of its bases, or else the name of core's class."""
    return " or ".join(BASES[base].title for base in bases_of(model)) or f"a {class_of(model)}"


def file_of(model):
    """The name of the file that one of core's loaders read a MODEL from; "" where it does not say.

    Without folders, but that a name which every trainer gives comes after its folder's.
    """
    loader = model.cached_patcher_init
    path = loader[1][0] if loader and loader[1] else ""
    return telling(path) if isinstance(path, str) else ""


def prediction_of(model):
    """eps, v, edm, flow, cosmos or x0: what the network predicts. ValueError for what core has beside these."""
    sampling = model.get_model_object("model_sampling")
    return "x0" if is_x0(sampling) else host.path_of(sampling).prediction


def path_of(model):
    """``host.path_of``, which for a network that predicts x0 is eps: that says what it answers, not how noise is mixed in."""
    sampling = model.get_model_object("model_sampling")
    return Path("eps", log_sigmas=sampling.log_sigmas) if is_x0(sampling) else host.path_of(sampling)


def shift_of(model):
    """The shift of a flow model as ModelSamplingSD3 counts it, None of others. Flux's number is its logarithm."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        return None
    shift = getattr(sampling, "shift", 1.0)
    return math.exp(shift) if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux) else shift


def with_shift(model, shift):
    """A clone of a flow model with this shift, or the MODEL itself where it has it already."""
    if math.isclose(shift, shift_of(model), rel_tol=1e-6):
        return model
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
        return host.with_shift(model, shift)
    shifted = type(sampling)(model.model.model_config)
    shifted.set_parameters(shift=math.log(shift))
    model = model.clone()
    model.add_object_patch("model_sampling", shifted)
    return model


def with_x0(model):
    """A clone whose network's output is taken as the clean latent, as core's ModelSamplingDiscrete with x0 does."""
    sampling = model.get_model_object("model_sampling")
    if is_x0(sampling):
        return model
    kind = type("ModelSamplingX0", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0), {})
    model = model.clone()
    model.add_object_patch("model_sampling", kind(model.model.model_config))
    return model


def is_x0(sampling):
    kinds = comfy.model_sampling.X0, comfy.model_sampling.IMG_TO_IMG
    return isinstance(sampling, kinds[0]) and not isinstance(sampling, kinds[1])


def sampler_name(sampler):
    """The name of a SAMPLER in ComfyUI's list or in SOLVERS; None for one that another node made."""
    solver, _ = host.solver_of(sampler)
    if solver is not None:
        return next((key for key, entry in SOLVERS.items() if entry is solver), None)
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
    return name if name in comfy.samplers.SAMPLER_NAMES else None
