"""Models in the real ComfyUI, in this process, sampled through core's guider."""

import asyncio
import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

from tools import ROOT
from tools.inprocess import import_comfyui

PROMPTS = (
    "a large red star on a blue background",
    "a small white ring at the top on a black background",
    "a yellow square on the left and a green heart on the right on a purple background",
    "a medium orange cross in the center on a cyan background",
)


@functools.cache
def node_classes():
    """ComfyUI's table of nodes, the pack's among them."""
    import_comfyui()
    import nodes

    if "Distillery_Trace" not in nodes.NODE_CLASS_MAPPINGS:  # else a test has loaded them
        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        if not asyncio.run(nodes.load_custom_node(str(ROOT))):
            raise RuntimeError("ComfyUI could not load the pack: see its log above.")
    return nodes.NODE_CLASS_MAPPINGS


def run(node, **inputs):
    """The outputs of one of the pack's nodes."""
    return node_classes()[f"Distillery_{node}"].EXECUTE_NORMALIZED(**inputs).args


def method(name, **knobs):
    """The output of whichever node offers this method without a model: a SAMPLER."""
    for kind in node_classes().values():
        if getattr(kind, "RELATIVE_PYTHON_MODULE", "").endswith(ROOT.name):
            for entry in kind.GET_SCHEMA().inputs:
                if entry.id == "method" and name in [option.key for option in entry.options]:
                    return kind.EXECUTE_NORMALIZED(method={"method": name, **knobs}).args[0]
    raise LookupError(f"no node offers {name}")


def core(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


@dataclass(frozen=True)
class Task:
    """A model and what to sample with it. noise is (B, C, H, W)."""

    model: Any
    positive: list
    negative: list
    cfg: float
    noise: torch.Tensor
    scheduler: str = "simple"

    def sigmas(self, steps):
        import comfy.samplers

        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), self.scheduler, steps)

    def sample(self, sampler, sigmas, model=None):
        """The latent made from the task's noise, once all work is done; model is the task's own with something added."""
        import comfy.model_management
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(model or self.model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(self.cfg)
        with torch.inference_mode():
            latent = guider.sample(self.noise, torch.zeros_like(self.noise), sampler, sigmas, disable_pbar=True, seed=0)
        comfy.model_management.synchronize()
        return latent

    def alone(self, picture):
        """The task of one picture of the batch."""
        positive, negative = (picked(condition, picture) for condition in (self.positive, self.negative))
        return replace(self, positive=positive, negative=negative, noise=self.noise[picture : picture + 1])

    def counted(self, sampler, sigmas):
        """(latent, model evaluations of the positive condition)."""
        traced, report = run("Trace", model=self.model)
        latent = self.sample(sampler, sigmas, traced)
        return latent, report.runs[-1]["totals"]["branches"]["cond"]


def bundled(name="shapes-dit", pictures=1, prompts=PROMPTS, seed=0):
    """A bundled model at CFG 4 with a batch of different prompts."""
    model, clip, _ = run("LoadDemoModel", name=name)
    texts = [encode(clip, prompts[i % len(prompts)]) for i in range(pictures)]
    channels = model.get_model_object("latent_format").latent_channels
    noise = torch.randn(pictures, channels, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Task(model, stacked(texts), stacked([encode(clip, "")] * pictures), 4.0, noise)


def decoder(name):
    """A function from a latent of a bundled model to pictures (B, 3, 128, 128) in [0, 1], float64."""
    vae, node = run("LoadDemoModel", name=name)[2], node_classes()["VAEDecode"]()

    def decode(latent):
        with torch.inference_mode():
            return node.decode(vae, {"samples": latent})[0].movedim(-1, 1).double().clamp(0, 1)

    return decode


def encode(clip, text):
    return node_classes()["CLIPTextEncode"]().encode(clip, text)[0]


def stacked(conditions):
    """One condition for the whole batch, from one for each picture."""
    tensors, options = zip(*(entry for (entry,) in conditions))
    same = {name: torch.cat([option[name] for option in options]) for name, value in options[0].items() if torch.is_tensor(value)}
    return [[torch.cat(tensors), options[0] | same]]


def picked(condition, picture):
    """The condition of one picture, from one for the whole batch."""
    ((tensor, options),) = condition
    same = {name: value[picture : picture + 1] if torch.is_tensor(value) else value for name, value in options.items()}
    return [[tensor[picture : picture + 1], same]]
