"""The nodes, in menu order."""

from . import version  # noqa: F401, I001  first: it says so if this ComfyUI is too old for what follows

from comfy_api.latest import ComfyExtension

from . import compare, demo, guidance, invert, metrics, plots, prompt_score, registration, reports, sampler_extras
from . import samplers, schedules, sigma_editor, sweep


class Distillery(ComfyExtension):
    async def on_load(self):
        registration.register_if_asked()

    async def get_node_list(self):
        generation = demo.NODES + samplers.NODES + sampler_extras.NODES + invert.NODES + schedules.NODES + sigma_editor.NODES + guidance.NODES
        return generation + reports.NODES + compare.NODES + metrics.NODES + prompt_score.NODES + plots.NODES + sweep.NODES
