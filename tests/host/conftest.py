"""The real ComfyUI in this process, with this pack loaded the way ComfyUI loads it."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
import torch

from tools import ROOT
from tools.install import COMFYUI
from tools.launch import apply_shims


def import_comfyui():
    apply_shims()
    sys.path.insert(0, os.environ.get("COMFYUI_PATH", str(COMFYUI)))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()


import_comfyui()


@pytest.fixture(scope="session")
def nodes():
    """ComfyUI's table of node classes, core's and ours, as its server has it."""
    import nodes as comfyui_nodes

    assert Path(comfyui_nodes.__file__).is_relative_to(Path(sys.path[0])), "our nodes/ hides ComfyUI's nodes.py"

    async def load():
        await comfyui_nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        return await comfyui_nodes.load_custom_node(str(ROOT))

    assert asyncio.run(load()), "ComfyUI could not load the pack: see its log above"
    return comfyui_nodes.NODE_CLASS_MAPPINGS
