"""ComfyUI-Distillery: solvers, guidance, caches and distillation for any model ComfyUI loads."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import Distillery  # here, not at the top: pytest and the tools import this package without ComfyUI

    return Distillery()
