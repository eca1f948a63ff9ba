"""What the pack adds to ComfyUI's start."""

import json
import os
import statistics
import subprocess
import sys
import tempfile

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


def load_once(bytecode=None):
    """Seconds to load the pack into a fresh ComfyUI that has just loaded its own nodes, and what that imported.

    bytecode: a folder where Python keeps what it compiled; without one it compiles the pack if the environment forbids keeping.
    """
    environment = dict(os.environ)
    if bytecode:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = bytecode
    command = [sys.executable, "-c", PROGRAM, str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(times=5):
    with tempfile.TemporaryDirectory() as bytecode:
        first, *loads = [load_once(bytecode) for _ in range(1 + times)]
    assert all(load["loaded"] for load in loads)
    seconds = [load["seconds"] for load in loads]
    heavy = sorted(set(HEAVY).intersection(*(load["new"] for load in loads)))
    row = {
        "loaded": "the pack",
        "first start s": first["seconds"],
        "median s": statistics.median(seconds),
        "fastest s": min(seconds),
        "slowest s": max(seconds),
        "heavy imports": ", ".join(heavy) or "none",
    }
    return Result(
        "How much longer does ComfyUI take to start with the pack?",
        f"The pack is loaded by ComfyUI's own loader in {times} fresh processes, after core's nodes; before them one start in which Python "
        "compiles the pack. Goal: under 0.1 s.",
        [row],
        Ratios(("loaded",), "median s", "fastest s", "slowest s", goal=0.1),
    )
