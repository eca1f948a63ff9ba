"""Training in the real server and in the headless program: killed, interrupted, gone on with, and always the same LoRA."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from safetensors.torch import load_file

from tools import ROOT
from tools.host import THREADS
from tools.install import Problem
from tools.run_workflow import run
from tools.server import running_server

STEPS = 24
SETTINGS = {  # a recipe that takes seconds; the parts of a DynamicCombo are inputs of their own, with dots
    "objective": ("phased", {"phases": 2, "substeps": 2}), "law": ("uniform", {}), "data": ("own", {"count": 8, "teacher_steps": 2}),
    "lora": ("own", {"rank": 4}), "optimiser": ("usual", {}), "run": ("own", {"batch": 4, "save_every": 4}), "profile": ("usual", {}),
}  # fmt: skip


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def workflow(url, name, kind="Distill"):
    """Train shapes-dit under this name."""
    with urllib.request.urlopen(f"{url}/object_info/Distillery_Recipe") as reply:
        declared = json.load(reply)["Distillery_Recipe"]["input"]["required"]
    recipe = {}
    for section, (choice, own) in SETTINGS.items():
        option = next(option for option in declared[section][1]["options"] if option["key"] == choice)
        knobs = {key: own.get(key, default_of(spec)) for key, spec in option["inputs"].get("required", {}).items()}
        recipe |= {section: choice, **{f"{section}.{key}": value for key, value in knobs.items()}}
    return {
        "demo": node("Distillery_LoadDemoModel", name="shapes-dit"),
        "prompts": node(
            "Distillery_DistillPrompts", source="list",
            **{"source.clip": ["demo", 1], "source.prompts": "a {red|blue} star\na green ring", "source.negative": ""},
        ),
        "recipe": node("Distillery_Recipe", **recipe),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "train": node(
            f"Distillery_{kind}", model=["demo", 0], prompts=["prompts", 0], goal="2_steps", quality="normal", cfg=4.0, steps=STEPS,
            minutes=0.0, memory="plenty", seed=1, name=name, latent=["latent", 0], recipe=["recipe", 0],
        ),
    }  # fmt: skip


def default_of(spec):
    return spec[1]["default"] if "default" in spec[1] else spec[1]["options"][0]


def in_background(prompt, url, output):
    """(thread, list that receives the result, or the Problem) of a workflow that runs meanwhile."""
    found = []

    def work():
        try:
            found.append(run(prompt, url, output))
        except Problem as problem:
            found.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def states(folder):
    return sorted(int(path.stem.removeprefix("state-")) for path in folder.glob("state-*.json"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_interrupted_and_headless_runs_end_as_one_that_was_left_alone(server, tmp_path):
    output = server.log.parent / "output"
    runs = output / "distillery" / "runs"
    with running_server("--output-directory", output) as killed:
        thread, found = in_background(workflow(killed.url, "broken"), killed.url, tmp_path)
        wait_for(lambda: states(runs / "broken"))
        os.killpg(killed.process.pid, signal.SIGKILL)
        thread.join(60)
        assert isinstance(found[0], Problem)
    first = states(runs / "broken")[-1]
    assert first < STEPS

    thread, found = in_background(workflow(server.url, "broken"), server.url, tmp_path)
    wait_for(lambda: states(runs / "broken")[-1] > first)
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"{}", {"Content-Type": "application/json"})).close()
    thread.join(60)
    assert "interrupted" in str(found[0])
    second = states(runs / "broken")[-1]
    assert first < second < STEPS and load_file(runs / "broken" / "broken.safetensors")

    done = run(workflow(server.url, "broken"), server.url, tmp_path)
    assert any(f"Gone on with after step {second}" in text for text in done["texts"])
    run(workflow(server.url, "whole"), server.url, tmp_path)
    run(workflow(server.url, "apart", "ExportRun"), server.url, tmp_path)
    headless(runs / "apart", 4)
    headless(runs / "apart", None)
    loras = [load_file(runs / name / f"{name}.safetensors") for name in ("whole", "broken", "apart")]
    for lora in loras[1:]:
        assert lora.keys() == loras[0].keys() and all(bool((lora[key] == loras[0][key]).all()) for key in lora)


def headless(folder, stop_at):
    """Train by the program, ended by SIGTERM once this step is saved; None lets it finish."""
    environment = {**os.environ, **THREADS}
    program = subprocess.Popen(
        [sys.executable, "-m", "tools.distill", str(folder), "--json"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if stop_at is not None:
        wait_for(lambda: states(folder) or program.poll() is not None)
        program.send_signal(signal.SIGTERM)
    printed, complaints = program.communicate(timeout=120)
    if stop_at is None:
        assert program.returncode == 0, complaints
        assert json.loads(printed)["steps"] == STEPS
    else:
        assert program.returncode == 130 and stop_at <= states(folder)[-1] < STEPS
