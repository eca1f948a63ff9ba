"""The part of a workflow before one link: its nodes, the inputs that a person names, and clones of it with other values."""

import csv
import math

from comfy_api.latest import _io, io
from comfy_execution.graph import nodes as comfyui_nodes
from comfy_execution.graph_utils import GraphBuilder, is_link

WATCHED = ("MODEL", "GUIDER")  # what is watched to time a run


def class_of(prompt, node_id):
    return comfyui_nodes.NODE_CLASS_MAPPINGS[prompt.get_node(node_id)["class_type"]]


def links(prompt, node_id):
    """{input: (source, slot)} of what is connected to a node."""
    return {name: tuple(value) for name, value in prompt.get_node(node_id)["inputs"].items() if is_link(value)}


def upstream(prompt, node_id):
    """The node and all it depends on, each after its own sources."""
    order, seen, waiting = [], set(), [(node_id, False)]
    while waiting:
        current, sources_done = waiting.pop()
        if sources_done:
            order.append(current)
        elif current not in seen:
            seen.add(current)
            waiting.append((current, True))
            waiting += [(source, False) for source, _ in links(prompt, current).values()]
    return order


def declared(prompt, node_id):
    """{input: (type, limits)} as the node's class declares them, for the choices made in this prompt."""
    node, kind = prompt.get_node(node_id), class_of(prompt, node_id)
    inputs = kind.INPUT_TYPES()
    if issubclass(kind, io.ComfyNode):
        inputs = _io.get_finalized_class_inputs(inputs, node["inputs"])[0]
    found = {**inputs.get("required", {}), **inputs.get("optional", {})}
    return {name: (value[0], value[1] if len(value) > 1 else {}) for name, value in found.items()}


def called(prompt, node_id):
    return prompt.get_node(node_id).get("_meta", {}).get("title") or prompt.get_node(node_id)["class_type"]


def output_type(prompt, link):
    node_id, slot = link
    return class_of(prompt, node_id).RETURN_TYPES[slot]


def find_input(prompt, link, name, text):
    """(node id, input) of ``TITLE_OR_ID.INPUT`` before the link; both may hold dots, and the longest title that fits wins.

    Raises ValueError, naming the node's input ``name``, for what is not there, ambiguous, or not before the link.
    """
    text, branch, titles = text.strip(), upstream(prompt, link[0]), {}
    for node_id in prompt.all_node_ids():
        for title in {node_id, called(prompt, node_id)}:
            if text.startswith(title + "."):
                titles.setdefault(title, []).append(node_id)
    nodes = ", ".join(f"{node_id} ({called(prompt, node_id)})" for node_id in branch)
    if not titles:
        raise ValueError(f"{name} is {text!r}: no node has that title or id. Write NODE.INPUT; before candidate are {nodes}.")
    title = max(titles, key=len)
    found = [node_id for node_id in titles[title] if node_id in branch]
    if not found:
        raise ValueError(
            f"{name} is {text!r}: node {title!r} is not before candidate, so varying it would change nothing. There are: {nodes}."
        )
    if len(found) > 1:
        raise ValueError(f"{name} is {text!r}: {len(found)} nodes are called {title!r}. Use one of the ids {', '.join(found)}.")
    node_id, entry = found[0], text[len(title) + 1 :]
    inputs = declared(prompt, node_id)
    if entry not in inputs:
        raise ValueError(f"{name} is {text!r}: {title!r} has no input {entry!r}. It has: {', '.join(inputs)}.")
    return node_id, entry


# Values


def read_values(name, text, kind, limits):
    """The values of a comma-separated list, as the input's type wants them; a value with commas stands in double quotes."""
    texts = [item.strip() for row in csv.reader(text.splitlines(), skipinitialspace=True) for item in row if item.strip()]
    if not texts:
        raise ValueError(f"{name} is empty: list the values to try, for example 4, 8, 16.")
    return [read_value(name, item, kind, limits) for item in texts]


def read_value(name, text, kind, limits):
    options = kind if isinstance(kind, list) else limits.get("options") if kind in ("COMBO", "COMFY_DYNAMICCOMBO_V3") else None
    if options is not None:
        keys = [option["key"] if isinstance(option, dict) else option for option in options]
        known = {str(key): key for key in keys}
        expected = f"one of {', '.join(list(known)[:60])}"
    elif kind == "BOOLEAN":
        known, expected = {"true": True, "false": False}, "true or false"
        text = text.lower()
    elif kind in ("INT", "FLOAT"):
        number = read_number(text, int if kind == "INT" else float)
        low, high = limits.get("min", -math.inf), limits.get("max", math.inf)
        known = {} if number is None or not low <= number <= high else {text: number}
        expected = f"{'a whole number' if kind == 'INT' else 'a number'} from {low} to {high}"
    elif kind == "STRING":
        known, expected = {text: text}, ""
    else:
        raise ValueError(f"{name}: the input takes {kind}, of which no list can be written. Vary a number, a choice or a text.")
    if text not in known:
        raise ValueError(f"{name} has {text!r}, and the input takes {expected}.")
    return known[text]


def read_number(text, kind):
    try:
        number = kind(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# Clones


def expand(prompt, link, axes, runs):
    """Clones of what lies between the varied inputs and ``link``: (link to the result, nodes to add).

    axes are (node id, input); runs is a list of (run, values), one value an axis. A run's ``watch`` gets each MODEL and GUIDER
    where it enters, its ``measure`` the result, and the last one's ``finish`` comes after all.
    """
    branch = upstream(prompt, link[0])
    varied = {node_id for node_id, _ in axes}
    for node_id in branch:
        if any(source in varied for source, _ in links(prompt, node_id).values()):
            varied.add(node_id)
    cloned = [node_id for node_id in branch if node_id in varied]
    points = watch_points(prompt, cloned)
    graph, last = GraphBuilder(), None

    def step(name, call, value):
        return graph.node("Distillery_SweepStep", name, step=call, value=value, after=last).out(0)

    def source_of(number, source, slot):
        return graph.lookup_node(f"{number}-{source}").out(slot) if source in varied else [source, slot]

    for number, (run, values) in enumerate(runs):
        for node_id in cloned:
            original = prompt.get_node(node_id)
            clone = graph.node(original["class_type"], f"{number}-{node_id}")
            clone.set_override_display_id(node_id)
            clone.inputs |= original["inputs"]
            for name, point in links(prompt, node_id).items():
                clone.inputs[name] = source_of(number, *point)
                if point in points:
                    clone.inputs[name] = step(f"{number}-watch-{point[0]}-{point[1]}", run.watch, clone.inputs[name])
            clone.inputs |= {name: value for (axis_id, name), value in zip(axes, values) if axis_id == node_id}
        last = step(f"{number}-measure", run.measure, source_of(number, *link))
    return step("finish", run.finish, last), graph.finalize()


def watch_points(prompt, cloned):
    """The (source, slot) of each MODEL and GUIDER where it enters the cloned nodes, or is loaded by one of them."""

    def watchable(node_id):
        kinds = declared(prompt, node_id)
        for name, (source, slot) in links(prompt, node_id).items():
            if kinds.get(name, [None])[0] in WATCHED or output_type(prompt, (source, slot)) in WATCHED:
                yield source, slot

    passes_on = {node_id for node_id in cloned if list(watchable(node_id))}
    points = {point for node_id in passes_on for point in watchable(node_id) if point[0] not in passes_on}
    if not points:
        raise ValueError(
            "vary: no node after the varied input takes a MODEL or GUIDER, so nothing would be sampled anew. Vary an input of the "
            "sampler or of what comes before it."
        )
    return points
