"""ComfyUI's modules in this process, for programs and tests that need no server."""

import os
import sys

import torch

from .install import COMFYUI
from .launch import apply_shims


def import_comfyui(cpu=None):
    """Make ``comfy`` and the rest importable: from COMFYUI_PATH, else from the checkout's own ComfyUI.

    On the CPU if ``cpu`` says so, or if there is no GPU.
    """
    apply_shims()
    sys.path.insert(0, os.environ.get("COMFYUI_PATH") or str(COMFYUI))  # first: its nodes.py must win over our nodes/
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available() if cpu is None else cpu
