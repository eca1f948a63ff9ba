"""Turbo LoRAs: a distilled LoRA with the way it is to be sampled, on its way through the graph and in files."""

import json
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..distill.formats import Profile, difference, from_file, metadata, read, read_json, read_profile, to_file, write
from ..distill.formats.dialects import cast
from ..distill.formats.profile import BASE, FIGURES, PROFILE, RECIPE
from ..distill.lora import LoraSet
from ..samplers.core import complete
from ..samplers.solvers import SOLVERS
from . import host
from .host_frozen import layers_of
from .host_lora import as_patches, core_state
from .host_lora_formats import check_loads, fingerprint_of, lora_path, names_to_read, names_to_write, new_lora_path, weights_of

PACK = Path(__file__).resolve().parent.parent
MODELS = PACK / "models"
BUNDLED = {  # name in Load Turbo LoRA: file in models/
    "bundled: shapes-turbo-dit": "shapes-turbo-dit.safetensors",
    "bundled: shapes-turbo-unet": "shapes-turbo-unet.safetensors",
    "bundled: shapes-turbo-unet-guidance-free": "shapes-turbo-unet-guidance-free.safetensors",
}
SAFETENSORS = (".safetensors", ".sft")
ROUNDING = {"core": 0.0, "kohya": 0.0, "diffusers": 2e-3}  # how far what core makes of a file may be from the LoRA, relative

TurboLoraType = io.Custom("DISTILLERY_TURBO_LORA")


@dataclass(frozen=True)
class TurboLora:
    """lora: what it adds to which layers. profile: how to sample with it. metadata: {key: JSON}, of which BASE, RECIPE and FIGURES
    are read here. name: for messages and as a suggestion for the file.
    """

    lora: LoraSet
    profile: Profile
    metadata: dict[str, str]
    name: str

    def recorded(self, key):
        """What is known under BASE, RECIPE or FIGURES; an empty dict where nothing is."""
        return json.loads(self.metadata.get(key, "{}"))

    def changed(self, lora, recipe, name):
        """This with another LoraSet, to be sampled alike; what was measured of it holds no longer."""
        return TurboLora(lora, self.profile, {**self.metadata, RECIPE: json.dumps(recipe), FIGURES: "{}"}, name)


def made(lora, profile, model, recipe, name, figures=None):
    """The TurboLora of a LoraSet that was just trained on this MODEL. recipe, figures: dicts for JSON.

    Rounded to float16, as files are, so that what the graph uses and what is saved are the same from here on.
    """
    recorded = {BASE: fingerprint_of(model), RECIPE: recipe, FIGURES: figures or {}}
    return TurboLora(rounded(lora), profile, {key: json.dumps(value) for key, value in recorded.items()}, name)


def rounded(lora):
    """A LoraSet in float16, on the CPU. ValueError for a layer whose numbers do not fit."""
    small = LoraSet.from_state(cast(lora.state(), torch.float16))
    for path, adapter in small.items():
        adapter.window = lora[path].window
    return small


def applied(model, turbo, strength=None, other_checkpoints=False):
    """A clone of MODEL with the LoRA patched in: bit for bit what core's LoraLoader makes of its file, saved in its own dtype.

    strength: what the LoRA is multiplied by; None is the one its profile records. ValueError, naming both sides, where the MODEL
    is not the one it was made for; with other_checkpoints, only where its architecture is another.
    """
    check_base(model, turbo.recorded(BASE), turbo.name, other_checkpoints)
    return as_patches(turbo.lora, model, turbo.profile.strength if strength is None else strength)


def sampling(turbo):
    """(SAMPLER, SIGMAS, cfg) that the profile records. ValueError for a sampler that neither ComfyUI nor this pack has."""
    profile = turbo.profile
    return sampler_named(profile.sampler, profile.knobs), torch.tensor(profile.sigmas), float(profile.cfg)


def sampler_named(name, knobs):
    """A SAMPLER by its name: one of ComfyUI's, or else of this pack."""
    if name in comfy.samplers.KSampler.SAMPLERS:
        if not knobs:
            return comfy.samplers.sampler_object(name)
        return comfy.samplers.ksampler(name, dict(knobs))
    if name in SOLVERS:
        return host.as_sampler(SOLVERS[name], complete(SOLVERS[name].knobs, knobs))
    raise ValueError(
        f"the LoRA is to be sampled with {name!r}, which neither this ComfyUI nor this pack has: update both, or connect a "
        "sampler of your own."
    )


# Files


def save(turbo, model, name, dialect="core", licence="", overwrite=False):
    """(path, TurboLora as the file has it). Written whole or not at all; then core loads of it what the graph uses, or ValueError.

    model: the MODEL that it was made for, whose layers the dialect names. licence: a note on what the base model's licence asks
    of the file. overwrite: replace a file of this name; else the next free number is added to the name.
    """
    path = new_lora_path(name)
    if not overwrite:
        path = free_path(path)
    return path, write_file(turbo, model, path, dialect, licence)


def write_file(turbo, model, path, dialect="core", licence=""):
    """The TurboLora as the file at ``path`` has it. As ``save``, in any folder."""
    base = turbo.recorded(BASE)
    check_base(model, base, turbo.name)
    tensors = to_file(turbo.lora, names_to_write(model, dialect), dialect)
    written = from_file(tensors, names_to_read(model))
    written.fit(layers_of(model.model.diffusion_model))
    check_loads(model, tensors, written)
    header = metadata(
        written, dialect, turbo.profile, base, turbo.recorded(RECIPE), title=path.stem, pack=version(), licence=licence,
        figures=turbo.recorded(FIGURES),
    )  # fmt: skip
    write(path, tensors, header)
    self_test(path, model, written, ROUNDING[dialect])
    return TurboLora(written, turbo.profile, header, path.stem)


def free_path(path):
    """The path, or where it is taken the first of path-2, path-3, ... that is not."""
    candidates = (path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


def self_test(path, model, lora, rounding):
    """ValueError unless core's loader makes of the file what the graph makes of the LoraSet, up to relative ``rounding``."""
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    names, weights = comfy.lora.model_lora_keys_unet(model.model, {}), weights_of(model.model)
    theirs, ours = (_patches(comfy.lora.load_lora(state, names, log_missing=False)) for state in (tensors, core_state(lora)))
    for key in sorted({*theirs, *ours}):
        their, our = (comfy.lora.calculate_weight(found.get(key, []), torch.zeros(weights[key].shape), key) for found in (theirs, ours))
        distance, size = (their - our).norm(), our.norm()
        if not distance <= rounding * size:
            off = f"it is {float(distance / size):.1%} off" if key in theirs and size else "one of them changes it, the other does not"
            raise ValueError(
                f"{path} was saved, and ComfyUI's loader makes something else of {key}: {off}. Save in the dialect 'core', and please "
                "report this."
            )


def _patches(loaded):
    """{key: what core's ``calculate_weight`` adds to this weight} of the adapters that core has loaded."""
    patches = {}
    for target, adapter in loaded.items():
        key, offset, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        patches.setdefault(key, []).append((1.0, adapter, 1.0, offset, function))
    return patches


def load(name, model, other_checkpoints=False):
    """The TurboLora of a file in ComfyUI's loras folders, or of BUNDLED, for this MODEL.

    ValueError where the file has no profile, is no plain LoRA, or was made for another model: see ``applied``.
    """
    path = path_of(name)
    profile = read_profile(path)
    tensors, header = read(path)
    title = path.stem
    check_base(model, json.loads(header.get(BASE, "{}")), title, other_checkpoints)
    lora = from_file(tensors, names_to_read(model))
    lora.fit(layers_of(model.model.diffusion_model))
    return TurboLora(lora, profile, header, title)


def is_ours(path):
    """Whether a file records how it is to be sampled, as those of Save Turbo LoRA do. One that is no safetensors file does not."""
    return path.suffix.lower() in SAFETENSORS and read_json(path, PROFILE) is not None


def path_of(name):
    """The file that Load Turbo LoRA lists under this name. ValueError where there is none."""
    if name not in BUNDLED:
        return Path(folder_paths.get_full_path("loras", name) or lora_path(name))
    path = MODELS / BUNDLED[name]
    if not path.is_file():
        raise ValueError(
            f"the bundled file {path} is missing. Bring it back with `git checkout models` in the pack's folder, or install the "
            "pack again."
        )
    return path


def check_base(model, base, name, other_checkpoints=False):
    """ValueError where the fingerprint ``base`` that the LoRA ``name`` records is not the MODEL's. Nothing recorded passes."""
    present = fingerprint_of(model)
    found = difference(base, present) if base else None
    if found is None:
        return
    same_layers = base["architecture"] == present["architecture"] and base["layers"] == present["layers"]
    if same_layers and other_checkpoints:
        return
    remedy = (
        "Load that model, or turn on other_checkpoints to use it on this one all the same (a fine-tune, or one that is quantised)."
        if same_layers else "Load the model it was made for, or distil a LoRA for this one."
    )  # fmt: skip
    raise ValueError(
        f"the turbo LoRA {name} was made for another model: {_named(base)}. model is {_named(present)}; {found}. {remedy}"
    )


def check_same_base(turbo, other):
    """ValueError where two TurboLoras were made for different models."""
    bases = turbo.recorded(BASE), other.recorded(BASE)
    found = difference(*bases) if all(bases) else None
    if found:
        raise ValueError(
            f"turbo_lora, {turbo.name}, was made for {_named(bases[0])}, and other, {other.name}, for {_named(bases[1])}; {found}. Merge "
            "LoRAs of one model."
        )


def _named(base):
    return f"a {base['architecture']} with layers {base['layers'][:8]}"


def version():
    """Of this pack, as pyproject.toml has it."""
    text = (PACK / "pyproject.toml").read_text("utf-8")
    return re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]
