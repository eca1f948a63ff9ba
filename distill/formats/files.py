"""LoRA files: written whole or not at all, and named so that they stay in their folder."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import SafetensorError, safe_open

from ..checkpoints import save_tensors

SUFFIX = ".safetensors"
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')  # in a file's name on some system


def checked_name(name):
    """The name of a file below the LoRA folder, with / between folders and the suffix .safetensors, added where there is none.

    ValueError for an absolute path, one that leaves the folder, a character that some system forbids, and another suffix.
    """
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if not path.name:
        raise ValueError("name is empty: give the file a name, such as turbo/my-model-4-steps.")
    if path.is_absolute() or PureWindowsPath(name.strip()).anchor:
        raise ValueError(f"name is {name!r}, an absolute path: give a name below ComfyUI's loras folder.")
    if ".." in path.parts:
        raise ValueError(f"name is {name!r}: '..' would leave ComfyUI's loras folder. Give a name below it.")
    if FORBIDDEN.search(str(path)) or any(part.endswith((" ", ".")) for part in path.parts):
        raise ValueError(f"name is {name!r}: file names cannot hold any of < > : \" | ? * or end in a dot or a space.")
    if path.suffix not in ("", SUFFIX):
        raise ValueError(f"name is {name!r}: the file is a safetensors file, so end the name in {SUFFIX}.")
    return str(path) if path.suffix else f"{path}{SUFFIX}"


def write(path, tensors, metadata):
    """A safetensors file of {key: tensor} and {key: text}, in a folder that is made where it is missing.

    Any file of that name stays whole until the new one is. OSError, with nothing left behind, where it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, metadata)


def read(path):
    """(tensors, metadata) of a safetensors file. ValueError where it is none."""
    with _opened(path) as file:
        keys = file.keys()  # it cannot be iterated itself
        return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}


def read_metadata(path):
    """{key: text} of a safetensors file, without its tensors. ValueError where it is none."""
    with _opened(path) as file:
        return file.metadata() or {}


def _opened(path):
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}): it is damaged, incomplete or of another kind.") from error
