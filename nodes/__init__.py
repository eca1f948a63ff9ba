"""The nodes, in menu order."""

from . import version  # noqa: F401, I001  first: it says so if this ComfyUI is too old for what follows

from comfy_api.latest import ComfyExtension

from . import cache, compare, demo, guidance, guidance_prompts, invert, metrics, plots, prompt_score, registration, reports, sampler_extras
from . import compare_steps, discriminator, distill, distill_prompts, distill_recipe, pruning, samplers, schedules, sigma_editor, sweep, turbo
from . import diffusers_scheduler, turbo_edit, turbo_sampling


class Distillery(ComfyExtension):
    async def on_load(self):
        registration.register_if_asked()

    async def get_node_list(self):
        sampling = [demo, turbo_sampling, turbo_edit, samplers, sampler_extras, invert, schedules, sigma_editor, diffusers_scheduler]
        guiding = [guidance, guidance_prompts, discriminator, cache, pruning]
        training = [distill_prompts, distill_recipe, distill, turbo, compare_steps]
        measuring = [reports, compare, metrics, prompt_score, plots, sweep]
        return [node for module in sampling + guiding + training + measuring for node in module.NODES]
