"""Turbo LoRAs that other programs wrote: recognised, looked over, and applied by core's own loader."""

import math
from dataclasses import dataclass
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
from comfy.weight_adapter.lora import LoRAAdapter

from ..distill.formats import Profile, from_file
from ..samplers.turbo import BASES, PROFILES, candidates
from ..samplers.turbo.detect import bases_of_lora
from .host_frozen import layers_of
from .host_lora_formats import names_to_read
from .host_turbo import TurboLora
from .host_turbo_models import bases_of, title_of
from .host_turbo_sampling import AUTO, as_choice, offered_for

TEXT_ENCODERS = ("lora_te", "text_encoder", "lora_prior_te")  # how the names of a text encoder's layers begin


@dataclass(frozen=True)
class File:
    """tensors, header: as core's loader reads them. name: of the file, without folders. place: with those
    below the loras folder, joined by /, as many are published under a name that says nothing.
    """

    tensors: dict
    header: dict
    name: str
    place: str

    @property
    def shapes(self):
        return {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}


def read(path, listed):
    """The File at ``path``. listed: its name in ComfyUI's list, with the folders below the loras folder."""
    tensors, header = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    return File(tensors, header or {}, Path(path).name, Path(listed).as_posix())


def choose(file, model, key=AUTO, steps=0):
    """The Choice for a MODEL with this file. key: of PROFILES, or AUTO, which goes by its metadata, layers, shapes and name.

    ValueError, naming both sides, where the LoRA or the profile is for another base than the MODEL's; where AUTO finds no profile
    for it or several; and for steps that are not offered.
    """
    shown, bases = bases_of_lora(file.shapes), bases_of(model)
    layers = " or ".join(BASES[base].title for base in shown)
    if shown and bases and not set(shown) & set(bases):
        raise ValueError(
            f"the LoRA {file.name} was made for {layers}, as its layers show, and model is {title_of(model)}. Load that model, or a LoRA "
            "for this one."
        )
    seen = [(found, count, why) for found, count, why in candidates(file.shapes, file.header, file.place) if _fits(found, bases)]
    if key == AUTO:
        key = _only(seen, file, model, layers)
        why = next(why for found, _, why in seen if found == key)
    else:
        why = "chosen"
    of_file = next((count for found, count, _ in seen if found == key), None)
    return as_choice(PROFILES[key], of_file, why, steps)


def applied(model, file, strength):
    """(a clone with the LoRA patched in, bit for bit as core's LoraLoaderModelOnly does at this strength; what was, in words).

    ValueError where none of it fits a layer of the MODEL, or a part has another shape than its layer, which core would pass over.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    converted = comfy.lora_convert.convert_lora(file.tensors)
    loaded = comfy.lora.load_lora(converted, names, log_missing=False)
    if not loaded:
        raise ValueError(
            f"the LoRA {file.name} has no layer that model, {title_of(model)}, has (its first is {next(iter(file.tensors))!r}): load the "
            "model it was made for."
        )
    _check_shapes(loaded, model, file.name)
    left = [key for key in converted if not key.startswith(TEXT_ENCODERS) and not _belongs(key, names)]
    text = f"LoRA {file.name} at strength {strength:g}: {len(loaded)} layers changed."
    if left:
        text += f" Of the file, {len(left)} tensors belong to no layer of this model and were left out, {left[0]} among them."
    if strength == 0:
        return model, text
    return comfy.sd.load_lora_for_models(model, None, file.tensors, strength, 0, lora_metadata=file.header)[0], text


def as_turbo_lora(model, file, choice, sigmas):
    """The TurboLora of a file with the sampling of a Choice. ValueError for one that is no plain LoRA of the network alone."""
    lora = from_file(file.tensors, names_to_read(model))
    lora.fit(layers_of(model.model.diffusion_model))
    profile = choice.profile
    recorded = Profile(len(sigmas) - 1, profile.sampler, tuple(sigmas.tolist()), profile.cfg, profile.strength, dict(profile.knobs))
    return TurboLora(lora, recorded, dict(file.header), Path(file.name).stem)


def _fits(key, bases):
    profile = PROFILES[key]
    return profile.form != "checkpoint" and profile.base in bases


def _only(seen, file, model, layers):
    keys = list(dict.fromkeys(found for found, _, _ in seen))
    if len(keys) == 1:
        return keys[0]
    layers = f"its layers are those of {layers}" if layers else "its layers are of no base that is known here"
    offered = keys or [key for key in offered_for(model) if PROFILES[key].form != "checkpoint"]
    several = "; ".join(f"{found} ({why})" for found, _, why in seen)
    found = f"several are possible: {several}" if keys else "nothing in its metadata, layers or name tells one"
    remedy = f"Choose profile: {', '.join(offered)}" if offered else f"None is for model, {title_of(model)}"
    raise ValueError(
        f"{file.name} has no sampling profile of its own, and {found}; {layers}. {remedy}. Use ComfyUI's LoRA loader for one that is not "
        "for few steps."
    )


def _check_shapes(loaded, model, name):
    weights = model.model.state_dict()
    for target, adapter in loaded.items():
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        if not isinstance(adapter, LoRAAdapter) or adapter.weights[3] is not None or adapter.weights[5] is not None:
            continue
        rows, columns = len(adapter.weights[0]), adapter.weights[1][0].numel()
        expected = list(weights[key].shape)
        if offset is not None:
            expected[offset[0]] = offset[2]
        if rows != expected[0] or rows * columns != math.prod(expected):
            raise ValueError(
                f"the LoRA {name} changes {key} as {rows} x {columns}, and in model, {title_of(model)}, it is "
                f"{expected[0]} x {math.prod(expected[1:])}: it was made for another model. Load that one."
            )


def _belongs(key, names):
    """Whether a file's tensor is part of a layer that has one of these names: <name>.<part>, or <name>_lora.<part>."""
    parts = key.split(".")
    starts = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(start in names or start.removesuffix("_lora") in names for start in starts)
