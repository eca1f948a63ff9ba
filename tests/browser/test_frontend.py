"""The pack in ComfyUI's real frontend, in Chromium."""

import json
import os
import re
import subprocess
import sys
import urllib.request

import pytest

from tools import ROOT
from tools.browser import find_chromium, open_frontend
from tools.convert_workflow import load_workflow
from tools.install import Problem
from tools.prompt import load_prompt
from tools.server import running_server
from tools.stand_ins import SMALLER

WORKFLOWS = ROOT / "workflows"
NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))


@pytest.fixture(scope="module")
def url():
    try:
        find_chromium()
    except Problem as problem:
        pytest.skip(str(problem))
    with running_server() as server:
        yield server.url


@pytest.fixture(scope="module")
def frontend(url):  # one for all: playwright holds an event loop of this thread until it closes
    with open_frontend(url) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def nodes(url):
    """What the server says of our nodes, by id."""
    described = json.loads(get(url, "/object_info")[0])
    return {node_id: node for node_id, node in described.items() if node_id.startswith("Distillery_")}


@pytest.fixture(scope="module")
def pack(nodes):
    """The pack's folder name in custom_nodes."""
    [module] = {node["python_module"] for node in nodes.values()}
    return module.removeprefix("custom_nodes.")


def get(url, path):
    with urllib.request.urlopen(url + path) as reply:
        return reply.read(), reply.headers.get_content_type()


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_and_equals_its_headless_twin(frontend, name):
    frontend.load(WORKFLOWS / f"{name}.json")
    assert frontend.missing_nodes() == []
    assert frontend.to_api() == load_prompt(WORKFLOWS / "api" / f"{name}.json")


@pytest.mark.parametrize("name", NAMES)
def test_nodes_lie_apart_at_the_size_the_browser_gives_them(frontend, name):
    frontend.load(WORKFLOWS / f"{name}.json")
    boxes = frontend.evaluate("() => app.graph.nodes.map(node => [node.title, ...node.pos, ...node.size])")
    for i, (a, ax, ay, aw, ah) in enumerate(boxes):
        for b, bx, by, bw, bh in boxes[:i]:  # a node's title bar of 30 pixels lies above its position
            apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - 30 or by + bh <= ay - 30
            assert apart, f"{a} covers {b}"


def test_the_run_button_makes_the_first_picture(frontend):
    frontend.load(WORKFLOWS / "01-first-picture.json")
    button = frontend.page.get_by_test_id("queue-button")
    assert frontend.run_and_wait(button.click)["kind"] == "execution_success"
    shown = frontend.evaluate("() => app.nodeOutputs")
    titles = {node_id: node["_meta"]["title"] for node_id, node in frontend.to_api().items()}
    shown = {titles[node_id]: output for node_id, output in shown.items()}
    assert len(shown["Save Picture"]["images"]) == 1
    assert "40 model evaluations" in shown["What It Took"]["text"][0]


@pytest.mark.parametrize("name", [name for name in NAMES[1:] if name not in SMALLER])  # those need models: tests/server runs them
def test_a_workflow_runs(frontend, name):
    frontend.load(WORKFLOWS / f"{name}.json")
    assert frontend.run_and_wait()["kind"] == "execution_success"


def test_results_are_seen_on_the_nodes(frontend):
    """Pictures and words of Compare and Show Report, in the page and not in its data alone."""
    workflow = load_workflow(WORKFLOWS / "02-compare.json")
    [noise] = [node for node in workflow["nodes"] if node["type"] == "RandomNoise"]
    noise["widgets_values"][0] += 1  # the seed: of a run that ComfyUI remembers, it sends no words again
    frontend.load(workflow)
    assert frontend.run_and_wait()["kind"] == "execution_success"
    shown = {"Distillery_Compare": r"psnr \d", "Distillery_ShowReport": r"\d model evaluations"}
    frontend.page.wait_for_function(DRAWN, arg=list(shown))
    for words in shown.values():
        frontend.page.get_by_text(re.compile(words)).first.wait_for(state="visible")


DRAWN = """types => app.graph.nodes.filter(node => types.includes(node.type))
    .every(node => node.imgs?.length === 1 && node.imgs[0].naturalWidth > 200)"""


def test_a_choice_of_method_shows_that_methods_knobs(frontend, nodes):
    """And every method of every node keeps its defaults through the browser."""
    for node_id, node in nodes.items():
        kind, options = node["input"]["required"].get("method", (None, {}))
        if kind != "COMFY_DYNAMICCOMBO_V3":
            continue
        for option in options["options"]:
            knobs = {f"method.{name}": spec[1]["default"] for name, spec in option["inputs"]["required"].items()}
            values = frontend.evaluate(CHOOSE, [node_id, option["key"]])
            assert values["method"] == option["key"]
            assert {name: value for name, value in values.items() if name.startswith("method.")} == knobs


CHOOSE = """async ([type, method]) => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.widgets.find(widget => widget.name === 'method').value = method
    return Object.fromEntries(node.widgets.map(widget => [widget.name, widget.value]))
}"""


def test_every_node_has_its_help_page(url, pack, nodes):
    assert nodes
    for node_id in nodes:
        page, _ = get(url, f"/extensions/{pack}/docs/{node_id}.md")
        assert len(page.decode().split()) > 20, node_id


def test_the_workflows_are_templates_with_thumbnails(url, pack):
    assert sorted(json.loads(get(url, "/workflow_templates")[0])[pack]) == NAMES
    for name in NAMES:
        workflow, _ = get(url, f"/api/workflow_templates/{pack}/{name}.json")
        assert json.loads(workflow) == load_workflow(WORKFLOWS / f"{name}.json")
        picture, kind = get(url, f"/api/workflow_templates/{pack}/{name}.jpg")
        assert kind == "image/jpeg" and picture == (WORKFLOWS / f"{name}.jpg").read_bytes()


def test_a_template_opens_from_the_dialog(frontend, pack):
    page = frontend.page
    frontend.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    page.get_by_text(pack, exact=True).first.click()
    page.get_by_placeholder("Search ...").fill("01-first-picture")  # the dialog shows the first two dozen, in no order
    page.get_by_text("01-first-picture").first.click()
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'Distillery_LoadDemoModel')")
    assert frontend.to_api() == load_prompt(WORKFLOWS / "api" / "01-first-picture.json")


def test_a_node_that_is_not_there_is_named_and_nothing_is_written(url, tmp_path):
    workflow = load_workflow(WORKFLOWS / "01-first-picture.json")
    workflow["nodes"][2]["type"] = "SomebodysNode"
    (tmp_path / "in.json").write_text(json.dumps(workflow))
    done = convert(tmp_path / "in.json", "--server", url, "-o", tmp_path / "out.json")
    assert done.returncode == 1
    assert f'node {workflow["nodes"][2]["id"]} "Prompt": no class \'SomebodysNode\'' in done.stderr
    assert os.listdir(tmp_path) == ["in.json"]


def test_the_converter_writes_the_headless_twin(url, tmp_path):
    twin = (WORKFLOWS / "api" / "01-first-picture.json").read_text("utf-8")
    address = url.removeprefix("http://")
    done = convert(WORKFLOWS / "01-first-picture.json", "--server", address, "-o", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == json.loads(twin)
    assert os.listdir(tmp_path) == ["out.json"]


def test_what_the_frontend_chokes_on_is_a_message(url, tmp_path):
    workflow = load_workflow(WORKFLOWS / "01-first-picture.json")
    (tmp_path / "in.json").write_text(json.dumps({**workflow, "links": []}))
    done = convert(tmp_path / "in.json", "--server", url)
    assert done.returncode == 1 and not done.stdout
    assert "No link found" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("text, said", [
    ("{", "is not JSON"),
    ("[]", "is no workflow as the browser saves it"),
    ('{"nodes": []}', "is no workflow as the browser saves it"),
    ('{"1": {"class_type": "KSampler", "inputs": {}}}', "is in API format already"),
])  # fmt: skip
def test_what_is_no_browser_workflow_is_refused_at_once(tmp_path, text, said):
    (tmp_path / "in.json").write_text(text)
    done = convert(tmp_path / "in.json", "--server", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("url")  # skips where there is no Chromium
@pytest.mark.parametrize("environment, said", [
    ({}, "No frontend of ComfyUI answers at http://127.0.0.1:9"),
    ({"CHROMIUM": "/nowhere/chrome"}, "CHROMIUM=/nowhere/chrome is no program"),
    ({"CHROMIUM": "", "PATH": ""}, "apt-get install chromium"),
    ({"CHROMIUM": sys.executable}, "did not start"),
])  # fmt: skip
def test_what_is_missing_is_said_with_its_remedy(environment, said):
    done = convert(WORKFLOWS / "01-first-picture.json", "--server", "http://127.0.0.1:9", environment=environment)
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr


def test_the_console_has_no_complaint_about_the_pack(frontend, pack):
    """Last: it looks back at all that came before."""
    said = [f"{text} ({source})" for text, source in frontend.complaints]
    ours = [text for text in said if "Distillery" in text or pack in text]
    assert not ours, "\n".join(ours)


def convert(file, *arguments, environment=()):
    command = [sys.executable, "-m", "tools.convert_workflow", str(file), *map(str, arguments)]
    environment = {**os.environ, **dict(environment)}
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300, env=environment)
