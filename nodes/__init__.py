"""The nodes, in menu order."""

from . import version  # noqa: F401, I001  first: it says so if this ComfyUI is too old for what follows

from comfy_api.latest import ComfyExtension

from . import demo, guidance, reports, samplers, schedules


class Distillery(ComfyExtension):
    async def get_node_list(self):
        return demo.NODES + samplers.NODES + schedules.NODES + guidance.NODES + reports.NODES
