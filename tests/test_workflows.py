"""Every workflow comes twice, for the browser and headless, and every node appears in one: read from the files alone."""

import ast
import json

import pytest
from PIL import Image

from tools import ROOT
from tools.convert_workflow import load_workflow
from tools.prompt import load_prompt

from .unbundled import NEED_WEIGHTS

WORKFLOWS = ROOT / "workflows"
NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
UI_ONLY = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}


def our_nodes():
    """The ids of the pack's nodes, from the sources: any text that begins with the prefix and is an identifier.

    Without those marked is_dev_only: parts that other nodes add themselves while they run.
    """
    trees = [ast.walk(ast.parse(file.read_text("utf-8"))) for file in (ROOT / "nodes").glob("*.py")]
    nodes = [node for tree in trees for node in tree]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    schemas = [{word.arg: getattr(word.value, "value", None) for word in node.keywords}
               for node in nodes if isinstance(node, ast.Call)]
    parts = {schema.get("node_id") for schema in schemas if schema.get("is_dev_only")}
    return {text for text in texts - parts if text.startswith("Distillery_") and text.isidentifier()}


def test_each_workflow_has_its_twin():
    assert NAMES
    assert NAMES == sorted(file.stem for file in (WORKFLOWS / "api").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_the_twins_hold_the_same_nodes(name):
    prompt, workflow = load_prompt(WORKFLOWS / "api" / f"{name}.json"), load_workflow(WORKFLOWS / f"{name}.json")
    shown = {str(node["id"]): node["type"] for node in workflow["nodes"] if node["type"] not in UI_ONLY}
    assert shown == {node_id: node["class_type"] for node_id, node in prompt.items()}


@pytest.mark.parametrize("name", NAMES)
def test_each_node_has_a_title_and_links_to_what_is_there(name):
    prompt = load_prompt(WORKFLOWS / "api" / f"{name}.json")
    titles = [node["_meta"]["title"] for node in prompt.values()]
    assert all(titles) and len(set(titles)) == len(titles), "--set finds nodes by title"
    links = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert links and all(source in prompt for source, _ in links)


@pytest.mark.parametrize("name", NAMES)
def test_in_the_browser_it_explains_itself_and_keeps_its_seeds(name):
    nodes = load_workflow(WORKFLOWS / f"{name}.json")["nodes"]
    assert [node["widgets_values"][0].strip() for node in nodes if node["type"] == "MarkdownNote"]
    assert not [node["title"] for node in nodes if "randomize" in (node.get("widgets_values") or [])]


@pytest.mark.parametrize("name", NAMES)
def test_it_reports_what_it_took(name):
    classes = [node["class_type"] for node in load_prompt(WORKFLOWS / "api" / f"{name}.json").values()]
    assert "Distillery_ShowReport" in classes  # from Trace, or from a node with a report of its own


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_thumbnail(name):
    file = WORKFLOWS / f"{name}.jpg"
    assert file.exists(), "python -m tools.make_thumbnails makes it"
    picture = Image.open(file)
    assert picture.format == "JPEG" and max(picture.size) == 512
    assert file.stat().st_size <= 40_000


def test_every_node_of_the_pack_is_in_a_workflow():
    used = {node["class_type"] for name in NAMES for node in load_prompt(WORKFLOWS / "api" / f"{name}.json").values()}
    assert our_nodes() >= {"Distillery_Trace", "Distillery_SamplerMomentum"}
    assert our_nodes() - used == set(NEED_WEIGHTS)
    assert {kind for kind in used if kind.startswith("Distillery_")} <= our_nodes()


def test_files_are_written_as_the_tools_write_them():
    """So that a change made by hand and one made by a tool give the same small difference."""
    for file in [*WORKFLOWS.glob("*.json"), *(WORKFLOWS / "api").glob("*.json")]:
        text = file.read_text("utf-8")
        assert text == json.dumps(json.loads(text), indent=2) + "\n", file
