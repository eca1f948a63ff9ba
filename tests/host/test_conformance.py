"""What every node owes its user, checked over all nodes of the pack."""

import inspect
import json
import sys
from pathlib import Path

import pytest
from comfy_api.latest import io

from bench import startup
from tools import ROOT
from tools.host import NEEDED_COMFYUI

from ..unbundled import NEED_WEIGHTS


@pytest.fixture(scope="module")
def ours(nodes):
    return {name: node for name, node in nodes.items() if getattr(node, "RELATIVE_PYTHON_MODULE", "").endswith(ROOT.name)}


def all_inputs(inputs):
    for entry in inputs:
        yield entry
        if isinstance(entry, io.DynamicCombo.Input):
            for option in entry.options:
                yield from all_inputs(option.inputs)


def test_the_pack_is_there(ours):
    assert len(ours) >= 8


def test_ids_are_prefixed(ours):
    assert [name for name in ours if not name.startswith("Distillery_")] == []


def test_schema_ids_are_the_parameters_of_execute(ours):
    for name, node in ours.items():
        parameters = [p for p in inspect.signature(node.execute).parameters if p != "cls"]
        assert [i.id for i in node.GET_SCHEMA().inputs] == parameters, name


def test_every_input_and_output_has_a_tooltip(ours):
    for name, node in ours.items():
        schema = node.GET_SCHEMA()
        bare = [entry.id for entry in [*all_inputs(schema.inputs), *schema.outputs] if not entry.tooltip]
        assert not bare, f"{name}: no tooltip on {bare}"
        assert schema.description and schema.category.startswith("distillery/"), name


def test_every_node_has_a_help_page_that_names_its_inputs(ours):
    for name, node in ours.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        missing = [entry.id for entry in all_inputs(node.GET_SCHEMA().inputs) if f"`{entry.id}`" not in page]
        assert not missing, f"web/docs/{name}.md does not mention {missing}"


def test_every_node_is_in_a_headless_workflow(ours):
    used = set()
    for path in (ROOT / "workflows" / "api").glob("*.json"):
        used |= {node["class_type"] for node in json.loads(path.read_text(encoding="utf-8")).values()}
    assert {name for name, node in ours.items() if not node.GET_SCHEMA().is_dev_only} - set(NEED_WEIGHTS) <= used
    assert not used.intersection(NEED_WEIGHTS), "a workflow that not everybody can run"


def test_nodes_that_no_workflow_can_run_are_run_here(ours):
    for name, (_, file) in NEED_WEIGHTS.items():
        assert name in ours and f'nodes["{name}"]' in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_loading_the_pack_imports_nothing_heavy():
    """In a fresh ComfyUI, because here others have imported much. How long it takes: ``make bench NAME=startup``."""
    load = startup.load_once()
    assert load["loaded"]
    assert not set(startup.HEAVY).intersection(load["new"])


def test_an_old_comfyui_is_refused_with_the_remedy(ours):
    version = sys.modules[next(iter(ours.values())).__module__.rpartition(".")[0] + ".version"]
    version.check("0.30.0")
    with pytest.raises(ImportError, match="needs ComfyUI 0.30.0 or newer and this is 0.9.2: update"):
        version.check("0.9.2")
    assert version.NEEDED == NEEDED_COMFYUI
    needed = ".".join(map(str, NEEDED_COMFYUI))
    assert f'requires-comfyui = ">={needed}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_locales_say_what_the_schemas_say(ours):
    from tools.make_locales import node_definitions

    path = ROOT / "locales" / "en" / "nodeDefs.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == node_definitions(ours.values()), "run: python3 -m tools.host --run -m tools.make_locales"
