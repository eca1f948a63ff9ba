"""The headless runner against the real ComfyUI, with core nodes alone."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tools import ROOT


def node(class_type, title=None, **inputs):
    return {"class_type": class_type, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


def canvas(**inputs):
    return node("EmptyImage", "Canvas", **{"width": 64, "height": 32, "batch_size": 2, "color": 255, **inputs})


@pytest.fixture
def workflow(tmp_path):
    def write(**nodes):
        file = tmp_path / "workflow.json"
        file.write_text(json.dumps(nodes))
        return file

    return write


def run_workflow(file, *arguments, **options):
    command = [sys.executable, "-m", "tools.run_workflow", str(file), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300, **options)


def get(server, path):
    with urllib.request.urlopen(server.url + path) as reply:
        return json.load(reply)


def slow_nodes():
    """Some 20 s of work in small steps, for what happens in the middle."""
    nodes = {"b0": canvas(width=512, height=512)}
    for i in range(200):
        nodes[f"b{i + 1}"] = node("ImageBlur", f"Blur {i}", image=[f"b{i}", 0], blur_radius=31, sigma=10.0)
    return {**nodes, "save": node("SaveImage", images=["b200", 0], filename_prefix="slow")}


def test_pictures_and_texts_arrive(server, workflow, tmp_path):
    output = tmp_path / "out"
    file = workflow(a=canvas(), b=node("SaveImage", images=["a", 0], filename_prefix="sub/blue"),
                    c=node("PreviewAny", source="hello"), d=node("PreviewImage", images=["a", 0]))
    done = run_workflow(file, "--server", server.url, "--output", output, "--json", "--set", "Canvas.width=96")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["texts"] == ["hello"]
    assert result["evaluations"] is None
    assert [Image.open(file).size for file in result["files"]] == [(96, 32)] * 4
    assert [os.path.basename(file).startswith("blue") for file in result["files"]] == [True, True, False, False]
    assert sorted(os.listdir(output)) == sorted(map(os.path.basename, result["files"]))


def test_no_file_is_overwritten(server, workflow, tmp_path):
    file = workflow(a=canvas(batch_size=1), b=node("SaveImage", images=["a", 0], filename_prefix="same"))
    arguments = ["--server", server.url, "--output", tmp_path / "out", "--json"]
    [first] = json.loads(run_workflow(file, *arguments).stdout)["files"]
    os.rename(first, tmp_path / "out" / "same_00002_.png")  # the name the server gives the next one
    before = (tmp_path / "out" / "same_00002_.png").read_bytes()
    [second] = json.loads(run_workflow(file, *arguments, "--set", "a.color=0").stdout)["files"]
    assert os.path.basename(second) == "same_00002_-2.png"
    assert (tmp_path / "out" / "same_00002_.png").read_bytes() == before != Path(second).read_bytes()


def test_an_invalid_value_is_explained_and_nothing_runs(server, workflow, tmp_path):
    file = workflow(a=canvas(), b=node("SaveImage", images=["a", 0], filename_prefix="x"),
                    c=node("PreviewAny", source="an output that could be made all the same"))
    done = run_workflow(file, "--server", server.url, "--output", tmp_path / "out", "--set", "Canvas.width=99999")
    assert done.returncode == 1
    assert "node a \"Canvas\": input 'width' is 99999, outside 1 to 16384" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_long_list_of_choices_is_fetched(server, workflow):
    file = workflow(a=node("KSamplerSelect", "Sampler", sampler_name="nope"), b=node("PreviewAny", source=["a", 0]))
    done = run_workflow(file, "--server", server.url)
    assert done.returncode == 1
    assert "input 'sampler_name' is 'nope', which is none of: euler," in done.stderr
    assert "dpmpp_2m_sde" in done.stderr


def test_every_unknown_node_is_named(server, workflow):
    file = workflow(a=node("SomebodysNode", "Theirs"), b=node("Distillery_NotThere", "Ours"), c=canvas(),
                    d=node("SaveImage", images=["c", 0], filename_prefix="x"))
    done = run_workflow(file, "--server", server.url, "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert "node a \"Theirs\": no class 'SomebodysNode'" in error
    assert "node b \"Ours\": no class 'Distillery_NotThere'" in error
    assert "Install Missing Custom Nodes" in error
    assert "EmptyImage" not in error


def test_a_failing_node_is_named_without_a_traceback(server, workflow):
    file = workflow(a=node("RegexReplace", "Pattern", string="x", regex_pattern="(", replace="", case_insensitive=True,
                           multiline=False, dotall=False, count=0), b=node("PreviewAny", source=["a", 0]))
    done = run_workflow(file, "--server", server.url)
    assert done.returncode == 1
    assert 'node a "Pattern" failed: missing ), unterminated subpattern' in done.stderr
    assert "Traceback" not in done.stderr and "execution.py" not in done.stderr
    assert "execution.py" in run_workflow(file, "--server", server.url, "--verbose").stderr


def test_ctrl_c_interrupts_the_prompt_on_the_server(server, workflow, tmp_path):
    file, output = workflow(**slow_nodes()), tmp_path / "out"
    command = [sys.executable, "-m", "tools.run_workflow", file, "--server", server.url, "--output", output]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: get(server, "/queue")["queue_running"])
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "Traceback" not in process.stderr.read()
    wait_for(lambda: not get(server, "/queue")["queue_running"], seconds=10)
    assert not output.exists()


def test_an_interruption_by_another_is_reported(server, workflow, tmp_path):
    command = [sys.executable, "-m", "tools.run_workflow", workflow(**slow_nodes()), "--server", server.url]
    process = subprocess.Popen([*command, "--set", "b0.color=7"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: get(server, "/queue")["queue_running"])
    urllib.request.urlopen(server.url + "/interrupt", data=b"").close()
    assert process.wait(20) == 1
    assert "interrupted the workflow at node b" in process.stderr.read()


def test_a_prompt_taken_out_of_the_queue_is_noticed(server, workflow, tmp_path):
    command = [sys.executable, "-m", "tools.run_workflow", workflow(**slow_nodes()), "--server", server.url]
    first = subprocess.Popen([*command, "--set", "b0.color=8"], cwd=ROOT)
    wait_for(lambda: get(server, "/queue")["queue_running"])
    second = subprocess.Popen([*command, "--set", "b0.color=9"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: get(server, "/queue")["queue_pending"])
    urllib.request.urlopen(server.url + "/queue", data=b'{"clear": true}').close()
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == 130
    assert second.wait(20) == 1
    assert "removed the workflow" in second.stderr.read()


def test_no_server_there(workflow):
    done = run_workflow(workflow(a=canvas()), "--server", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "No ComfyUI answers at http://127.0.0.1:9" in done.stderr


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
