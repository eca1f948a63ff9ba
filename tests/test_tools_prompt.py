"""Reading workflows, overriding inputs, and wording complaints, which were recorded from ComfyUI 0.30.0."""

import copy
import json
from pathlib import Path

import pytest

from tools.install import Problem
from tools.prompt import explain_failure, explain_missing_nodes, explain_rejection, load_prompt, override

PROMPT = {
    "1": {"class_type": "A", "inputs": {"text": "", "method": "plain", "method.order": 2}, "_meta": {"title": "Words"}},
    "2": {"class_type": "B", "inputs": {"steps": 4, "model": ["1", 0]}, "_meta": {"title": "v1.5 = good"}},
    "3": {"class_type": "B", "inputs": {"steps": 5, "good.steps": 1}, "_meta": {"title": "v1"}},
    "4": {"class_type": "C", "inputs": {"x": 1}, "_meta": {"title": "Twin"}},
    "5": {"class_type": "C", "inputs": {"x": 1}, "_meta": {"title": "Twin"}},
    "6": {"class_type": "C", "inputs": {"x": 1}},
    "7": {"class_type": "C", "inputs": {"x": 1}, "_meta": {"title": "6"}},
}
RECORDED = json.loads((Path(__file__).parent / "data" / "comfyui_rejections.json").read_text())


@pytest.mark.parametrize(("text", "node", "name", "value"), [
    ("Words.text=a red cat", "1", "text", "a red cat"),
    ("1.text=a = b.c", "1", "text", "a = b.c"),
    ("Words.text=", "1", "text", ""),
    ("Words.text=NaN", "1", "text", "NaN"),
    ('Words.text="4"', "1", "text", "4"),
    ("Words.method.order=3", "1", "method.order", 3),
    ("v1.5 = good.steps=8", "2", "steps", 8),
    ("v1.steps=8", "3", "steps", 8),
    ("v1.good.steps=8", "3", "good.steps", 8),
    ("2.model=[\"3\", 1]", "2", "model", ["3", 1]),
    ("2.steps=1.5", "2", "steps", 1.5),
    ("5.x=true", "5", "x", True),
    ("6.x=2", "6", "x", 2),
])
def test_override(text, node, name, value):
    prompt = copy.deepcopy(PROMPT)
    override(prompt, text)
    expected = copy.deepcopy(PROMPT)
    expected[node]["inputs"][name] = value
    assert prompt == expected
    assert type(prompt[node]["inputs"][name]) is type(value)


@pytest.mark.parametrize(("text", "complaint"), [
    ("Nobody.x=1", r"no node has that title or id. There are: 1 \(Words\), 2"),
    ("Words.colour=1", "has no input 'colour'. It has: text, method, method.order"),
    ("Twin.x=1", "2 nodes are called 'Twin'; use one of their ids: 4, 5"),
    ("Words.text", "no value given"),
    ("Words=4", "no node has that title"),
])
def test_override_that_fits_nothing(text, complaint):
    prompt = copy.deepcopy(PROMPT)
    with pytest.raises(Problem, match=complaint):
        override(prompt, text)
    assert prompt == PROMPT


@pytest.mark.parametrize(("content", "complaint"), [
    (None, "Cannot read .*No such file"),
    ("{", "is not JSON"),
    (b"\x89PNG\r\n\x1a\n", "is not JSON"),
    ('{"nodes": [], "links": [], "version": 0.4}', "tools.convert_workflow"),
    ('{"prompt": {"1": {"class_type": "A", "inputs": {}}}}', "no API-format workflow"),
    ("[]", "no API-format workflow"),
    ("{}", "no API-format workflow"),
    ('{"1": {"class_type": "A"}}', "no API-format workflow"),
])
def test_files_that_are_no_prompt(tmp_path, content, complaint):
    file = tmp_path / "workflow.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Problem, match=complaint):
        load_prompt(file)


def test_a_prompt_is_read_as_it_is(tmp_path):
    (tmp_path / "workflow.json").write_text(json.dumps(PROMPT))
    assert load_prompt(tmp_path / "workflow.json") == PROMPT


@pytest.mark.parametrize(("name", "lines"), [
    ("too_big", ["node 1 \"EmptyImage\": input 'width' is 99999999, outside 1 to 16384"]),
    ("too_small_and_type", ["node 1 \"EmptyImage\": input 'height' is 'abc', which is no INT",
                            "node 1 \"EmptyImage\": input 'width' is -1, outside 1 to 16384"]),
    ("missing", [f"node 1 \"EmptyImage\": input '{name}' is missing" for name in ("height", "color", "batch_size")]),
    ("not_in_list", [("node 3 \"ImageScaleBy\": input 'upscale_method' is 'magic', "
                      "which is none of: nearest-exact, bilinear, area, bicubic, lanczos")]),
    ("bad_link", ["node 2 \"SaveImage\": it or a node before it has a link to '9', which the workflow lacks"]),
    ("loadimg", ["node 1 \"LoadImage\": Custom validation failed for node: image - Invalid image file: nope.png"]),
    ("wrong_type", ["node 3 \"VAEDecode\": input 'samples' takes LATENT, but node 1 \"EmptyImage\" gives IMAGE",
                    "node 3 \"VAEDecode\": input 'vae' takes VAE, but node 1 \"EmptyImage\" gives IMAGE"]),
])
def test_rejections_in_words(name, lines):
    reply = {"error": {"type": "some_outputs"}, **RECORDED[name]["reply"]}
    first, *rest = explain_rejection(RECORDED[name]["prompt"], reply).splitlines()
    assert first == "ComfyUI refused the workflow:"
    assert sorted(line.strip() for line in rest) == sorted(lines)


def test_a_workflow_without_results():
    assert "Save Image" in explain_rejection(RECORDED["no_outputs"]["prompt"], RECORDED["no_outputs"]["reply"])


def test_missing_nodes_come_with_a_remedy():
    ours = {"1": {"class_type": "Distillery_X", "inputs": {}}}
    theirs = {"1": {"class_type": "X", "inputs": {}}}
    assert "this pack's" in explain_missing_nodes(ours, {"Distillery_X"})
    assert "Manager" not in explain_missing_nodes(ours, {"Distillery_X"})
    assert "Manager" in explain_missing_nodes(theirs, {"X"})
    assert "this pack's" not in explain_missing_nodes(theirs, {"X"})


def test_a_failure_inside_an_expanded_node_goes_by_the_node_that_made_it():
    data = {"node_id": "1.0.0.3", "exception_message": "too bad\n", "exception_type": "builtins.ValueError",
            "traceback": ["here\n"]}
    said = explain_failure(PROMPT, data)
    assert said == 'node 1.0.0.3 "Words" failed: too bad (ValueError; tools.run_workflow --verbose shows where)'
    assert explain_failure(PROMPT, data, verbose=True).endswith("here\n")
