"""What a LoRA file says about itself: how to sample with it, how and from what it was made, and the keys other tools show."""

import json
from dataclasses import asdict, dataclass, field, fields
from math import isfinite

import torch

from ...samplers.core import check_sigmas
from .files import read_metadata

PROFILE, BASE, RECIPE, FIGURES = "distillery.profile", "distillery.base", "distillery.recipe", "distillery.figures"
KNOWN_TO_OTHERS = {  # core's name of the architecture: sd-scripts' ss_base_model_version, and modelspec's architecture
    "SD15": ("sd_v1", "stable-diffusion-v1"),
    "SD20": ("sd_v2", "stable-diffusion-v2-512"),
    "SDXL": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    "SD3": ("", "stable-diffusion-3"),
    "Flux": ("flux1", "flux-1-dev"),
    "FluxSchnell": ("flux1", "flux-1-schnell"),
}
WRITERS = {  # dialect: whose names the keys are, for modelspec.implementation
    "core": "https://github.com/comfyanonymous/ComfyUI",
    "kohya": "https://github.com/kohya-ss/sd-scripts",
    "diffusers": "diffusers",
}


@dataclass(frozen=True)
class Profile:
    """How to sample with a distilled LoRA.

    steps: how many. sampler: its name in ComfyUI's list or in this pack's registry. sigmas: steps + 1 falling noise levels, in
    the model's own units. cfg: 1 evaluates no negative prompt. strength: of the LoRA. knobs: {name: number, text or bool} of
    the sampler. ValueError, on construction, that names what is wrong.
    """

    steps: int
    sampler: str
    sigmas: tuple[float, ...]
    cfg: float
    strength: float = 1.0
    knobs: dict = field(default_factory=dict)

    def __post_init__(self):
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}: it must be a whole number of at least 1.")
        if not isinstance(self.sampler, str) or not self.sampler:
            raise ValueError(f"sampler is {self.sampler!r}: it must be the name of a sampler.")
        if not isinstance(self.sigmas, (tuple, list)) or not all(_is_number(sigma) for sigma in self.sigmas):
            raise ValueError(f"sigmas is {self.sigmas!r}: it must be a list of numbers.")
        object.__setattr__(self, "sigmas", tuple(self.sigmas))
        check_sigmas(torch.tensor(self.sigmas, dtype=torch.float64))
        if len(self.sigmas) != self.steps + 1:
            raise ValueError(f"sigmas has {len(self.sigmas)} values: {self.steps} steps need {self.steps + 1}.")
        if not _is_number(self.cfg) or not isfinite(self.cfg) or self.cfg < 0:
            raise ValueError(f"cfg is {self.cfg!r}: it must be a finite number of at least 0.")
        if not _is_number(self.strength) or not isfinite(self.strength) or self.strength == 0:
            raise ValueError(f"strength is {self.strength!r}: it must be a finite number other than 0.")
        if not isinstance(self.knobs, dict) or not all(isinstance(value, (int, float, str)) for value in self.knobs.values()):
            raise ValueError(f"knobs is {self.knobs!r}: it must hold a number, a text or a truth value for each name.")


def metadata(lora, dialect, profile, base, recipe, *, title, pack, licence="", figures=None):
    """The header of a file, {key: text}.

    lora: the LoraSet. dialect: of the file. profile: Profile. base: the ``fingerprint`` of the model it was made for. recipe
    and figures: dicts for JSON, how it was made and what was measured. pack: version of this pack. licence: a note on what the
    base model's licence asks of the file. Beside our own keys (distillery.*) there are sd-scripts' ss_* and those of modelspec
    (github.com/Stability-AI/ModelSpec), which model managers show.
    """
    ranks = {adapter.rank for _, adapter in lora.items()}
    alphas = ranks if dialect == "diffusers" else {adapter.alpha for _, adapter in lora.items()}
    version, architecture = KNOWN_TO_OTHERS.get(base["architecture"], ("", base["architecture"]))
    texts = {
        "distillery.pack": pack,
        "distillery.dialect": dialect,
        PROFILE: json.dumps(asdict(profile)),
        BASE: json.dumps(base),
        RECIPE: json.dumps(recipe),
        FIGURES: json.dumps(figures or {}),
        "ss_network_module": "networks.lora",
        "ss_network_dim": _only(ranks),
        "ss_network_alpha": _only(alphas),
        "ss_base_model_version": version,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": WRITERS[dialect],
        "modelspec.title": title,
        "modelspec.license": licence,
        "modelspec.usage_hint": usage(profile),
    }
    return {key: text for key, text in texts.items() if text}


def usage(profile):
    """The profile in a sentence."""
    steps = "1 step" if profile.steps == 1 else f"{profile.steps} steps"
    return f"{steps}, sampler {profile.sampler}, CFG {profile.cfg:g}, LoRA strength {profile.strength:g}."


def read_profile(path):
    """The Profile recorded in a file. ValueError that names the file and what is wrong with it, where there is no valid one."""
    recorded = read_json(path, PROFILE)
    if recorded is None:
        raise ValueError(f"{path} has no sampling profile: it was not saved by Save Turbo LoRA. Use ComfyUI's LoRA loader.")
    try:
        for name in ("steps", "sampler", "sigmas", "cfg"):
            if not isinstance(recorded, dict) or name not in recorded:
                raise ValueError(f"it has no {name}.")
        unknown = sorted(recorded.keys() - {entry.name for entry in fields(Profile)})
        if unknown:
            raise ValueError(f"it has {unknown[0]!r}, which this version does not know: update ComfyUI-Distillery.")
        return Profile(**recorded)
    except ValueError as error:
        raise ValueError(f"the sampling profile of {path} is not valid: {error}") from error


def read_json(path, key):
    """What a file records under PROFILE, BASE, RECIPE or FIGURES; None where it has none. ValueError where it is not JSON."""
    text = read_metadata(path).get(key)
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds {key} that is not JSON ({error}): its header is damaged.") from error


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _only(values):
    """The one value, or sd-scripts' word for several."""
    return f"{next(iter(values)):g}" if len(values) == 1 else "Dynamic"
