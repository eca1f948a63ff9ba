"""Runs ComfyUI's main.py: ``python tools/launch.py [--shims] [--guard] COMFYUI_FOLDER [ComfyUI's own arguments]``.

``--guard`` ends ComfyUI with the program that started it; ``--probe`` only prints what its torch can do, as JSON.
"""

import functools
import importlib.util
import json
import os
import runpy
import sys
import threading
import types
from pathlib import Path


@functools.cache
def apply_shims():
    """Let ComfyUI import a torchvision and a torchaudio whose compiled parts were built for another torch.

    Both refuse to import without their operators, which ComfyUI never calls. Does nothing where they load.
    """
    import torch

    if not _library_loads("torchaudio", "lib/_torchaudio.*"):
        stub = types.ModuleType("torchaudio._extension")
        stub._IS_TORCHAUDIO_EXT_AVAILABLE = False
        stub.fail_if_no_align = lambda function: function
        sys.modules[stub.__name__] = stub
    if not _library_loads("torchvision", "_C.*"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library  # kept by the cache: its definitions would go with it


def _library_loads(package, pattern):
    import torch

    spec = importlib.util.find_spec(package)
    try:
        for library in Path(spec.origin).parent.glob(pattern) if spec else ():
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def probe():
    """What the server needs to know before it starts, so that it need not import torch ahead of ComfyUI on a GPU."""
    import torch

    gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    shims = not (_library_loads("torchvision", "_C.*") and _library_loads("torchaudio", "lib/_torchaudio.*"))
    return {"torch": torch.__version__, "gpu": gpu, "shims": shims}


def _end_with_parent():
    sys.stdin.read()  # returns when the other end of the pipe is gone, however that program died
    os._exit(0)


def main(arguments):
    flags = {"--probe", "--shims", "--guard"}.intersection(arguments)
    if "--probe" in flags:
        print(json.dumps(probe()))
        return
    comfyui, *rest = [argument for argument in arguments if argument not in flags]
    sys.path[0] = comfyui  # not tools/, whose server.py would win over ComfyUI's
    if "--guard" in flags:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if "--shims" in flags:
        apply_shims()
    sys.argv = [str(Path(comfyui) / "main.py"), *rest]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
