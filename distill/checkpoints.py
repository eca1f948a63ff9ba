"""The states of a run on disk: safetensors and JSON, each file whole or absent, whenever the machine stops."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

KEPT = 2  # states: the newest and one before it


def whole_file(path, write):
    """write(a temporary path), then give that file its name: ``path`` never holds half of it.

    OSError, naming the path, where it cannot be written; what was there before stays.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, Exception):  # safetensors has its own kind for a full disk
            raise OSError(f"{path} could not be written: {error}. What was there before is whole.") from error
        raise


def save_tensors(path, tensors, metadata=None):
    """A safetensors file of {name: tensor}; metadata is {str: str}."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whole_file(path, lambda part: save_file(tensors, part, metadata))


def save_json(path, value):
    whole_file(path, lambda part: part.write_text(json.dumps(value, indent=1), "utf-8"))


def check_room(folder, needed, what):
    """OSError unless the disk of ``folder`` has this many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{what} needs {needed / 2**20:,.0f} MiB in {folder} and {free / 2**20:,.0f} MiB are free there: free some, or choose "
            "another folder."
        )


class Checkpoints:
    """``state-<step>.safetensors`` and ``state-<step>.json`` in one folder. A state counts from when its JSON is there."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def steps(self):
        """Of the states there, rising."""
        return sorted(int(path.stem.removeprefix("state-")) for path in self.folder.glob("state-*.json"))

    def file(self, step, suffix):
        return self.folder / f"state-{step:07d}.{suffix}"

    def save(self, step, tensors, info):
        """Write a state, then drop all but the last ``KEPT``, and what runs that were killed left. OSError where it cannot be written; older ones stay."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        check_room(self.folder, int(1.05 * size) + 2**20, f"the state of step {step}")
        self.file(step, "json").unlink(missing_ok=True)  # of a state of this name: it is about to be replaced
        save_tensors(self.file(step, "safetensors"), tensors)
        save_json(self.file(step, "json"), info)
        for old in self.steps()[:-KEPT]:
            self.file(old, "json").unlink()
        kept = {self.file(step, "safetensors") for step in self.steps()}
        for path in {*self.folder.glob("state-*.safetensors"), *self.folder.glob("state-*.part")} - kept:
            path.unlink()

    def latest(self):
        """(tensors, info) of the newest state, or None."""
        steps = self.steps()
        return self.load(steps[-1]) if steps else None

    def load(self, step):
        return load_file(self.file(step, "safetensors")), json.loads(self.file(step, "json").read_text("utf-8"))


def differences(recorded, given, prefix=""):
    """Where two nested dicts differ: "name: was ..., is ..." for each."""
    found = []
    for name in sorted({*recorded, *given}):
        old, new = recorded.get(name), given.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: was {old!r}, is {new!r}")
    return found


def check_same(recorded, given, folder, what):
    """ValueError that names every difference, where ``what`` in this folder was begun with other settings or another model."""
    found = differences(recorded, json.loads(json.dumps(given)))
    if found:
        raise ValueError(f"{folder} holds {what} begun differently ({'; '.join(found)}): use those again, or another folder.")


def parameters_of(module, prefix):
    """{prefix + name: copy} of a module's parameters."""
    return {prefix + name: p.detach().cpu().clone() for name, p in module.named_parameters()}


@torch.no_grad()
def restore_parameters(module, tensors, prefix):
    for name, p in module.named_parameters():
        p.copy_(tensors[prefix + name])
