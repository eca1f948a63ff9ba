"""API-format workflows: read from a file, change by overrides, and put ComfyUI's complaints about them into words."""

import json
from pathlib import Path

from .install import Problem


def load_prompt(file):
    try:
        prompt = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"Cannot read {file}: {error.strerror}.") from error
    except ValueError as error:
        raise Problem(f"{file} is not JSON: {error}.") from error
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise Problem(f"{file} is a workflow as the browser saves it, and this needs the API format. "
                      f"Convert it with `python -m tools.convert_workflow`, or in ComfyUI with File > Export (API).")
    if not isinstance(prompt, dict) or not prompt or not all(_is_node(node) for node in prompt.values()):
        raise Problem(f"{file} is no API-format workflow: that is an object of nodes, each with class_type and inputs. "
                      "In ComfyUI: File > Export (API).")
    return prompt


def _is_node(node):
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def title(prompt, node_id):
    """What a person calls a node; a node made by another while it ran (5.0.0.1) goes by that one's title."""
    node = prompt.get(node_id) or prompt.get(str(node_id).split(".")[0]) or {}
    return node.get("_meta", {}).get("title") or node.get("class_type") or "?"


def label(prompt, node_id):
    return f'node {node_id} "{title(prompt, node_id)}"'


# Overrides


def override(prompt, text):
    """Apply one ``TITLE_OR_ID.INPUT=VALUE`` in place; both titles and input names may hold dots and equal signs."""
    node_id, rest = _find_node(prompt, text)
    inputs = prompt[node_id]["inputs"]
    name, equals, value = rest.partition("=")
    if not equals:
        raise Problem(f"--set {text}: no value given; write it as {text}=VALUE.")
    if name not in inputs:
        raise Problem(f"--set {text}: {label(prompt, node_id)} has no input {name!r}. It has: {_listed(inputs)}.")
    inputs[name] = _parse(value)


def _find_node(prompt, text):
    names = {node.get("_meta", {}).get("title") for node in prompt.values()} | set(prompt)
    fitting = [name for name in names if name and text.startswith(name + ".")]
    if not fitting:
        raise Problem(f"--set {text}: no node has that title or id. There are: "
                      f"{_listed(f'{node_id} ({title(prompt, node_id)})' for node_id in prompt)}.")
    name = max(fitting, key=len)
    found = [name] if name in prompt else [key for key in prompt if prompt[key].get("_meta", {}).get("title") == name]
    if len(found) > 1:
        raise Problem(f"--set {text}: {len(found)} nodes are called {name!r}; use one of their ids: {_listed(found)}.")
    return found[0], text[len(name) + 1:]


def _parse(value):
    try:
        return json.loads(value, parse_constant=_no_number)
    except ValueError:
        return value


def _no_number(name):
    raise ValueError(name)  # NaN and Infinity stay text: ComfyUI's range checks let NaN pass


def _listed(names, most=20):
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ComfyUI's complaints


def explain_rejection(prompt, reply):
    """ComfyUI's reply to a prompt it will not run, in words: one line for each thing to put right."""
    error = reply["error"]
    if error["type"] == "prompt_no_outputs":
        return "The workflow saves and shows nothing: add a node that does, such as Save Image."
    lines = explain_node_errors(prompt, reply["node_errors"]) or [f"  {error['message']} {error.get('details', '')}"]
    return "ComfyUI refused the workflow:\n" + "\n".join(lines)


def explain_node_errors(prompt, node_errors):
    return [f"  {label(prompt, node_id)}: {_explain(prompt, error)}"
            for node_id, node in (node_errors or {}).items() for error in node["errors"]]


def _explain(prompt, error):
    extra = error.get("extra_info") or {}
    name, received = extra.get("input_name"), extra.get("received_value")
    kind, limits = [*(extra.get("input_config") or [None]), {}][:2]
    match error["type"]:
        case "value_not_in_list" if extra.get("input_config"):
            choices = limits.get("options", kind)
            return f"input {name!r} is {received!r}, which is none of: {_listed(choices, most=100) or '(nothing)'}"
        case "value_bigger_than_max" | "value_smaller_than_min":
            return f"input {name!r} is {received!r}, outside {limits.get('min')} to {limits.get('max')}"
        case "invalid_input_type":
            return f"input {name!r} is {received!r}, which is no {kind}"
        case "required_input_missing":
            return f"input {name!r} is missing"
        case "return_type_mismatch":
            source = label(prompt, extra["linked_node"][0])
            return f"input {name!r} takes {kind}, but {source} gives {extra['received_type']}"
        case "exception_during_validation" if extra.get("exception_type") == "KeyError":
            return f"it or a node before it has a link to {error['details']}, which the workflow lacks"
    return f"{error['message']}: {error['details']}"


def explain_missing_nodes(prompt, missing):
    """`missing` are the node classes of the prompt that the server does not know."""
    lines = [f"  {label(prompt, node_id)}: no class {node['class_type']!r}"
             for node_id, node in prompt.items() if node["class_type"] in missing]
    if any(name.startswith("Distillery_") for name in missing):
        lines.append("Nodes named Distillery_... are this pack's: link it into that ComfyUI's custom_nodes, or "
                     "update it, and restart ComfyUI. If it is there, ComfyUI's log says why it did not load.")
    if not all(name.startswith("Distillery_") for name in missing):
        lines.append("Install the packs that have the others (ComfyUI-Manager: Install Missing Custom Nodes) or update "
                     "ComfyUI, then restart it.")
    return "This ComfyUI lacks nodes of the workflow:\n" + "\n".join(lines)


def explain_failure(prompt, data, verbose=False):
    """An ``execution_error`` message in words."""
    text = f"{label(prompt, data['node_id'])} failed: {data['exception_message'].strip()}"
    if verbose:
        return text + "\n" + "".join(data["traceback"])
    return text + f" ({data['exception_type'].split('.')[-1]}; tools.run_workflow --verbose shows where)"
