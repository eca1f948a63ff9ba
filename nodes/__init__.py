"""The nodes, in menu order."""

from . import version  # noqa: F401, I001  first: it says so if this ComfyUI is too old for what follows

from comfy_api.latest import ComfyExtension

from . import compare, demo, guidance, metrics, plots, reports, samplers, schedules, sweep


class Distillery(ComfyExtension):
    async def get_node_list(self):
        generation = demo.NODES + samplers.NODES + schedules.NODES + guidance.NODES
        return generation + reports.NODES + compare.NODES + metrics.NODES + plots.NODES + sweep.NODES
