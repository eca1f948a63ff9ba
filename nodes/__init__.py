"""The nodes, in menu order."""

from comfy_api.latest import ComfyExtension

from . import demo, guidance, reports, samplers, schedules


class Distillery(ComfyExtension):
    async def get_node_list(self):
        return demo.NODES + samplers.NODES + schedules.NODES + guidance.NODES + reports.NODES
