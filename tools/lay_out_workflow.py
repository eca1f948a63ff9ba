"""Makes the browser twin of an API-format workflow, laid out from left to right, with ComfyUI's own frontend.

    python -m tools.lay_out_workflow workflows/api/NAME.json ... [--note "Markdown text"] [--server URL]

Writes workflows/NAME.json. A note that is already there is kept unless another is given.
"""

import argparse
import json
import math
from pathlib import Path

from . import ROOT
from .convert_workflow import convert, frontend_somewhere, write_json
from .install import Problem, run_program
from .prompt import load_prompt
from .server import end_on_sigterm

GAP, ROW_GAP, TITLE = 70, 50, 30
SIZES = {  # roomier or tighter than the frontend's own, which do not know what a node will show
    "CLIPTextEncode": (300, 120), "SaveImage": (300, 330), "PreviewAny": (300, 150),
    "Distillery_ShowReport": (300, 430), "Distillery_Compare": (300, 430), "Distillery_SigmaPlot": (300, 460),
    "Distillery_CompareSteps": (400, 760),
}  # fmt: skip
NARROW, WIDE = 225, 300
NOTE_LINE = 46  # characters in a note that is WIDE
WINDOW = 1450, 800  # the part of a usual window that is free for the graph
KEEP_SEEDS = """() => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name === 'control_after_generate') widget.value = 'fixed'
}"""


def columns(ui):
    """Nodes by column, right before what they feed, in the order of the inputs they feed; ends come right after the rest."""
    fed, feeders = {node["id"]: [] for node in ui["nodes"]}, {node["id"]: [] for node in ui["nodes"]}
    for _, source, _, target, slot, _ in ui["links"]:
        fed[source].append((target, slot))
        feeders[target].append(source)
    distance, place = {}, {}

    def from_right(node_id):
        if node_id not in distance:
            distance[node_id] = 1 + max((from_right(target) for target, _ in fed[node_id]), default=-1)
        return distance[node_id]

    rows = [[] for _ in range(1 + max(map(from_right, fed)))]
    for node_id, sources in feeders.items():
        if sources and not fed[node_id]:
            distance[node_id] = min(distance[source] for source in sources) - 1
    for node in ui["nodes"]:
        rows[distance[node["id"]]].append(node)
    for row in rows:
        row.sort(key=lambda node: min(((-distance[t], place[t], slot) for t, slot in fed[node["id"]]), default=(1,)))
        place |= {node["id"]: i for i, node in enumerate(row)}
    return rows[::-1]


def note_node(text, ui):
    ui["last_node_id"] += 1
    lines = sum(math.ceil((len(line) or 1) / NOTE_LINE) for line in text.splitlines())
    return {
        "id": ui["last_node_id"], "type": "MarkdownNote", "title": "Note", "pos": [0, 0], "size": [WIDE, 50 + 19 * lines],
        "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text],
        "color": "#432", "bgcolor": "#653",
    }  # fmt: skip


def lay_out(ui, note):
    """Place the nodes of a serialised graph, with the note at the left, and show all of it at once."""
    stacks = columns(ui)
    if note:
        ui["nodes"].append(note_node(note, ui))
        stacks[0].append(ui["nodes"][-1])
    x, height = 0, 0
    for stack in stacks:
        y, width = 0, 0
        for node in stack:
            wide, high = SIZES.get(node["type"], node["size"])
            node |= {"pos": [x, y], "size": [min(max(wide, NARROW), WIDE), high]}
            y += node["size"][1] + TITLE + ROW_GAP
            width = max(width, node["size"][0])
        x, height = x + math.ceil(width) + GAP, max(height, y)
    scale = round(min(1, WINDOW[0] / x, WINDOW[1] / height), 2)
    ui["extra"]["ds"] = {"scale": scale, "offset": [round(90 / scale), round(150 / scale)]}


def twin(frontend, prompt, note):
    frontend.load(prompt)
    frontend.evaluate(KEEP_SEEDS)
    ui = frontend.to_ui()
    lay_out(ui, note)
    back = convert(frontend, ui)
    if back != prompt:
        changed = [key for key in {*prompt, *back} if prompt.get(key) != back.get(key)]
        raise Problem(f"The browser changes nodes {', '.join(sorted(changed))}: first convert what it makes of them.")
    return ui


def note_of(file):
    nodes = json.loads(file.read_text("utf-8"))["nodes"] if file.exists() else []
    return next((node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"), "")


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.lay_out_workflow", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="workflows in API format")
    parser.add_argument("--note", help="what the workflow shows and what to change, in Markdown")
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI; without it one is started and ended")
    options = parser.parse_args()
    end_on_sigterm()
    prompts = {ROOT / "workflows" / file.name: load_prompt(file) for file in options.files}
    with frontend_somewhere(options.server) as frontend:
        for file, prompt in prompts.items():
            write_json(file, twin(frontend, prompt, options.note or note_of(file)))


if __name__ == "__main__":
    run_program(main)
