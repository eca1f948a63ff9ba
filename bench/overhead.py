"""What our hooks and solvers cost beside core's, in a run of the bundled model."""

import asyncio
import statistics
import time

import torch

from tools import ROOT
from tools.inprocess import import_comfyui

from . import Result


class Bundled:
    """The bundled model with one prompt, sampled through core's guider."""

    def __init__(self):
        import_comfyui()
        import nodes

        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        asyncio.run(nodes.load_custom_node(str(ROOT)))
        self.nodes = nodes.NODE_CLASS_MAPPINGS
        self.model, clip, _ = self.run("LoadDemoModel", name="shapes-dit")
        encode = self.nodes["CLIPTextEncode"]().encode
        (self.positive,), (self.negative,) = encode(clip, "a large red star on a blue background"), encode(clip, "")
        self.noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(self, node, **inputs):
        return self.nodes[f"Distillery_{node}"].EXECUTE_NORMALIZED(**inputs).args

    def seconds(self, model, sampler, steps=20):
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(4.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        began = time.perf_counter()
        guider.sample(self.noise, torch.zeros_like(self.noise), sampler, sigmas, disable_pbar=True, seed=0)
        return time.perf_counter() - began


@torch.inference_mode()
def measure(times=15):
    bundled = Bundled()
    import comfy.k_diffusion.sampling
    import comfy.samplers

    euler = comfy.samplers.sampler_object("euler")
    ipndm = comfy.samplers.KSAMPLER(comfy.k_diffusion.sampling.sample_ipndm, {"max_order": 2})
    (ghvb,) = bundled.run("SamplerMomentum", method={"method": "ghvb", "order": 2.0})
    (ddim,) = bundled.run("SamplerConjugate", method={"method": "lambda_ddim", "lambda_c": 0.1})
    traced = bundled.run("Trace", model=bundled.model)[0]
    apg = bundled.run("ProjectedGuidance", model=bundled.model, method={"method": "apg"})[0]
    pairs = {
        "Trace": ((traced, euler), (bundled.model, euler), "core euler"),
        "APG": ((apg, euler), (bundled.model, euler), "core euler"),
        "ghvb, order 2": ((bundled.model, ghvb), (bundled.model, ipndm), "core ipndm, order 2"),
        "lambda_ddim": ((bundled.model, ddim), (bundled.model, euler), "core euler"),
    }
    rows = []
    for name, (ours, core, rival) in pairs.items():
        ratios = [bundled.seconds(*ours) / bundled.seconds(*core) for _ in range(times + 1)][1:]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({"ours": name, "rival": rival, "median ratio": middle, "quartiles": f"{low:.3f} to {high:.3f}"})
    return Result(
        "How much longer does a run take with our hooks and solvers than with core's?",
        f"shapes-dit, 20 steps, CFG 4, one picture; {times} interleaved pairs of runs in one process. 1 is no cost. The "
        "network is tiny, so that per-step costs show as they never would on a large one.",
        rows,
    )
