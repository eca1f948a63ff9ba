"""The real ComfyUI in this process, with this pack loaded the way ComfyUI loads it."""

import asyncio
import sys
from pathlib import Path

import pytest

from tools import ROOT
from tools.inprocess import import_comfyui

import_comfyui()
sys.path.append(str(Path(__file__).parent))  # for tiny.py, which the tests here share
import tiny


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


@pytest.fixture(scope="module", params=list(tiny.MODELS))
def built(request):
    return tiny.build(request.param)


@pytest.fixture(scope="module")
def flow():
    return tiny.build("flow")
