"""Our solvers as names in core's lists: only when asked, in place, and leaving others' names alone. Each in a fresh ComfyUI."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import ROOT

PROGRAM = """
import asyncio, json, sys
from tools.inprocess import import_comfyui
import_comfyui()
import comfy.sample, comfy.samplers, nodes, torch
import comfy.k_diffusion.sampling as functions
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
sys.path.append(sys.argv[2])
import tiny

def foreign(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return x

lists = {"ksampler": comfy.samplers.KSAMPLER_NAMES, "sampler": comfy.samplers.SAMPLER_NAMES}
functions.sample_foreign = functions.sample_distillery_nesterov = foreign
for names in lists.values():
    names += ["foreign", "distillery_nesterov"]
before, function_names, euler = list(comfy.samplers.SAMPLER_NAMES), set(dir(functions)), functions.sample_euler
assert asyncio.run(nodes.load_custom_node(sys.argv[1]))
after = comfy.samplers.SAMPLER_NAMES
result = {
    "same lists": lists["ksampler"] is comfy.samplers.KSAMPLER_NAMES and lists["sampler"] is after,
    "offered": nodes.KSampler.INPUT_TYPES()["required"]["sampler_name"][0] is after,
    "kept": after[: len(before)] == before and functions.sample_foreign is foreign and functions.sample_euler is euler,
    "theirs": functions.sample_distillery_nesterov is foreign and after.count("distillery_nesterov") == 1,
    "new": after[len(before):], "new functions": sorted(set(dir(functions)) - function_names),
}
if result["new"]:
    model, shape = tiny.build("flow")
    latent = {"samples": torch.zeros(1, *shape)}
    with torch.inference_mode():
        (out,) = nodes.KSampler().sample(
            model, 3, 4, 4.0, "distillery_ghvb", "simple", tiny.prompt(1), tiny.prompt(2), latent
        )
    ours = tiny.sampler(nodes.NODE_CLASS_MAPPINGS, "ghvb")
    expected = tiny.sample(model, comfy.sample.prepare_noise(latent["samples"], 3), sampler=ours, seed=3)
    result["equal"] = torch.equal(out["samples"], expected)
print(json.dumps(result))
"""


def load(asked):
    program = [sys.executable, "-c", PROGRAM, str(ROOT), str(Path(__file__).parent)]
    environment = {**os.environ, "DISTILLERY_REGISTER_SAMPLERS": asked}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("asked", ["0", "1"])
def test_names_are_registered_only_when_asked_and_beside_those_of_others(asked):
    from comfyui_distillery.samplers.solvers import SOLVERS

    result, log = load(asked)
    assert result["same lists"] and result["offered"] and result["kept"] and result["theirs"]
    ours = [f"distillery_{key}" for key in SOLVERS if key != "nesterov"] if asked == "1" else []
    assert result["new"] == ours
    assert result["new functions"] == sorted(f"sample_{name}" for name in ours)
    assert ("distillery_nesterov is taken" in log) == (asked == "1")
    assert result.get("equal", True)
