"""What the pack adds to ComfyUI's start."""

import json
import statistics
import subprocess
import sys

from tools import ROOT

from . import Ratios, Result

HEAVY = ("diffusers", "matplotlib", "scipy", "playwright")
PROGRAM = """
import asyncio, json, sys, time
from tools.inprocess import import_comfyui
import_comfyui()
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
before, began = set(sys.modules), time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node(sys.argv[1]))
seconds = time.perf_counter() - began
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"loaded": loaded, "seconds": seconds, "new": sorted(new)}))
"""


def load_once():
    """Seconds to load the pack into a fresh ComfyUI that has just loaded its own nodes, and what that imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ROOT)], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(times=5):
    loads = [load_once() for _ in range(times)]
    assert all(load["loaded"] for load in loads)
    seconds = [load["seconds"] for load in loads]
    heavy = sorted(set(HEAVY).intersection(*(load["new"] for load in loads)))
    row = {
        "loaded": "the pack",
        "median s": statistics.median(seconds),
        "fastest s": min(seconds),
        "slowest s": max(seconds),
        "heavy imports": ", ".join(heavy) or "none",
    }
    return Result(
        "How much longer does ComfyUI take to start with the pack?",
        f"The pack is loaded by ComfyUI's own loader in {times} fresh processes, after core's nodes. Goal: under 0.1 s.",
        [row],
        Ratios(("loaded",), "median s", "fastest s", "slowest s", goal=0.1),
    )
