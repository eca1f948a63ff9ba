"""ComfyUI's names of a model's layers in LoRA files, its loras folder, and its own verdict on a file of ours.

Core's map of names (``comfy.lora.model_lora_keys_unet``) is where the diffusers names come from, with rows and swapped halves.
"""

from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.model_base
import comfy.utils
import folder_paths
from comfy.quant_ops import QUANT_ALGOS

from ..distill.formats import Part, checked_name, fingerprint, native_names
from ..distill.formats.dialects import covers

PREFIX, WEIGHT = "diffusion_model.", ".weight"
IN_DIFFUSERS = {  # core's classes whose "transformer." names are those of diffusers, and beginnings of the names that are not
    comfy.model_base.Flux: (), comfy.model_base.Flux2: ("transformer.time_text_embed.",), comfy.model_base.Chroma: (),
    comfy.model_base.SD3: (), comfy.model_base.QwenImage: (), comfy.model_base.Lumina2: (), comfy.model_base.AuraFlow: (),
    comfy.model_base.PixArt: (), comfy.model_base.Krea2: (),
}  # fmt: skip
SGM = (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner)  # UNets that sd-scripts knows by core's paths, not by diffusers'


def names_to_write(model, dialect):
    """{name: Part}: what ``distill.formats.to_file`` needs to save a LoRA of this MODEL. ValueError where there is none."""
    base, rows = model.model, _rows(model.model)
    if dialect == "diffusers":
        return _diffusers_names(base, rows)
    if dialect == "core" or not _is_unet(base) or isinstance(base, SGM):
        return native_names(rows, dialect)
    unet = comfy.utils.unet_to_diffusers(base.model_config.unet_config)
    paths = {name.removesuffix(WEIGHT): path.removesuffix(WEIGHT) for name, path in unet.items() if name.endswith(WEIGHT)}
    used = {name: path for name, path in paths.items() if path in rows and not _is_other_embedding(base, name)}
    return {"lora_unet_" + name.replace(".", "_"): Part.whole(path, rows[path]) for name, path in used.items()}


def widest_dialect(model, lora):
    """The dialect that most programs read, of those that have a name for each layer of this LoraSet.

    "kohya" for a UNet, which ComfyUI, diffusers and sd-scripts read; "diffusers" for a transformer; or else "core".
    """
    first = "kohya" if _is_unet(model.model) else "diffusers"
    if first == "diffusers" and not _is_in_diffusers(model.model):
        return "core"
    named = {part.path for part in names_to_write(model, first).values()}
    return first if named.issuperset(lora.paths) else "core"


def names_to_read(model):
    """{name: Part}: every name that a layer of this MODEL has in any file that core reads, or PEFT's for a UNet."""
    base, rows = model.model, _rows(model.model)
    names = native_names(rows, "core")  # first: from_file takes its order of layers from here
    for name, target in comfy.lora.model_lora_keys_unet(base, {}).items():
        part = _part(target, rows)
        if part is not None:
            names[name] = part
            if ".processor.to_" in name:
                names[_peft_name(name)] = part
    return names


def new_lora_path(name):
    """Where a new LoRA of this name goes: in the first of ComfyUI's loras folders. ValueError for one that is not allowed."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / checked_name(name)


def lora_path(name):
    """The file that ComfyUI lists under this name. ValueError where there is none."""
    path = folder_paths.get_full_path("loras", checked_name(name))
    if path is None:
        raise ValueError(f"name is {name!r}: there is no such LoRA in ComfyUI's loras folders. Press R to refresh the list.")
    return path


def check_loads(model, tensors, lora):
    """Would core's LoraLoader apply all of these tensors, and to the layers of this LoraSet? ValueError if not, naming one."""
    converted = comfy.lora_convert.convert_lora(tensors)
    loaded = comfy.lora.load_lora(converted, comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False)
    used = set().union(*(adapter.loaded_keys for adapter in loaded.values()))
    left = [key for key in converted if key not in used]
    patched = {_path(target if isinstance(target, str) else target[0]) for target in loaded}
    missed = [path for path in lora.paths if path not in patched]
    if left or missed:
        raise ValueError(
            f"ComfyUI's LoRA loader would not apply {(left + missed)[0]!r} of this file and {len(left + missed) - 1} more: "
            "save in the dialect 'core'."
        )


def fingerprint_of(model):
    """The ``fingerprint`` of a MODEL's network as its file has it: without patches, loaded or not."""
    weights = weights_of(model.model)
    weights = {name: model.backup[name].weight if name in model.backup else weight for name, weight in weights.items()}
    network = {_path(name, ""): weight for name, weight in weights.items() if name.startswith(PREFIX)}
    return fingerprint(type(model.model.model_config).__name__, network)


def _rows(base):
    """{path: rows} of the layers that a LoRA can change, in the network's order."""
    weights = {name: weight for name, weight in weights_of(base).items() if weight.ndim > 1 and name.endswith(WEIGHT)}
    return {_path(name): weight.shape[0] for name, weight in weights.items() if name.startswith(PREFIX)}


def weights_of(base):
    """A model's ``state_dict``; of quantised layers the weights, as numbers, in place of what they are stored as."""
    known = {**dict(base.named_parameters(remove_duplicate=False)), **dict(base.named_buffers(remove_duplicate=False))}
    scales = {name for kind in QUANT_ALGOS.values() for name in kind["parameters"]}
    return {name: known[name] for name in base.state_dict() if name in known and name.rpartition(".")[2] not in scales}


def _path(name, ending=WEIGHT):
    return name.removeprefix(PREFIX).removesuffix(ending)


def _part(target, rows):
    """The Part that a value of core's map stands for, key or (key, (axis, start, length) or None[, function]); or None."""
    key, offset, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
    path = _path(key)
    if path not in rows or not key.endswith(WEIGHT):
        return None
    start, length = (0, rows[path]) if offset is None else offset[1:]
    return Part(path, start, start + length, rows[path], function is comfy.utils.swap_scale_shift)


def _is_unet(base):
    return "num_res_blocks" in base.model_config.unet_config


def _is_in_diffusers(base):
    """Of its class core has only Z-Image's names, not those of Lumina 2."""
    is_lumina_2 = type(base) is comfy.model_base.Lumina2 and not base.model_config.unet_config.get("z_image_modulation")
    return _is_unet(base) or (type(base) in IN_DIFFUSERS and not is_lumina_2)


def _diffusers_names(base, rows):
    if not _is_in_diffusers(base):
        raise ValueError(
            f"dialect is 'diffusers', and the names that diffusers gives the layers of {type(base).__name__} are not known "
            "here: save in the dialect 'core'."
        )
    prefix, strangers = ("unet.", ()) if _is_unet(base) else ("transformer.", IN_DIFFUSERS[type(base)])
    candidates = {}
    for name, target in comfy.lora.model_lora_keys_unet(base, {}).items():
        is_theirs = name.startswith(prefix) and not name.startswith(strangers) and not _is_other_embedding(base, name)
        part = _part(target, rows) if is_theirs else None
        if part is not None:
            candidates.setdefault(part.path, []).append((name, part))
    return {name: part for path, entries in candidates.items() for name, part in _chosen(base, entries, rows[path])}


def _chosen(base, entries, rows):
    """Of the names of one layer those to write: its parts, where it is split (none if they are not all of it), or else one."""
    whole = [entry for entry in entries if covers([entry[1]], rows)]
    if whole and isinstance(base, comfy.model_base.Flux2):
        return whole[-1:]  # core lists them after those of FLUX.1, whose layers have other names in diffusers and are split
    parts = [entry for entry in entries if entry not in whole]
    if parts:
        return parts if covers([part for _, part in parts], rows) else []
    return whole[:1]


def _is_other_embedding(base, name):
    """Core maps both of diffusers' names for label_emb: SDXL's is add_embedding, that of the other UNets class_embedding."""
    return ("class_embedding" if isinstance(base, SGM) else "add_embedding") in name


def _peft_name(name):
    name = name.replace(".processor.to_", ".to_")
    return f"{name}.0" if name.endswith(".to_out") else name
