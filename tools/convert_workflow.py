"""Converts a workflow as the browser saves it into API format, with ComfyUI's own frontend in Chromium.

    python -m tools.convert_workflow FILE.json [-o OUT.json] [--server URL]
"""

import argparse
import contextlib
import json
from pathlib import Path

from .browser import find_chromium, open_frontend
from .install import Problem, run_program
from .prompt import explain_missing_nodes
from .server import end_on_sigterm, running_server


def load_workflow(file):
    try:
        workflow = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"Cannot read {file}: {error.strerror}.") from error
    except ValueError as error:
        raise Problem(f"{file} is not JSON: {error}.") from error
    nodes = workflow.get("nodes") if isinstance(workflow, dict) else None
    if not nodes or not isinstance(nodes, list) or not all(map(_is_node, nodes)):
        api = isinstance(workflow, dict) and any(isinstance(v, dict) and "class_type" in v for v in workflow.values())
        raise Problem(f"{file} is in API format already." if api else
                      f"{file} is no workflow as the browser saves it. In ComfyUI: File > Export.")
    return workflow


def _is_node(node):
    return isinstance(node, dict) and isinstance(node.get("id"), (int, str)) and isinstance(node.get("type"), str)


def convert(frontend, workflow):
    """The API format of a browser workflow. Problem if this ComfyUI lacks one of its nodes."""
    frontend.load(workflow)
    missing = frontend.missing_nodes()
    if missing:
        nodes = {node_id: {"class_type": kind, "_meta": {"title": title}} for node_id, kind, title in missing}
        raise Problem(explain_missing_nodes(nodes, {kind for _, kind, _ in missing}))
    return frontend.to_api()


def write_json(file, content):
    part = Path(file).with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(file)


@contextlib.contextmanager
def frontend_somewhere(server=None):
    """The frontend of the ComfyUI at this URL, or of one that is started and ended."""
    find_chromium()  # first, it costs nothing
    with contextlib.ExitStack() as stack:
        url = server or stack.enter_context(running_server(only_this_pack=False)).url
        yield stack.enter_context(open_frontend(url))


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.convert_workflow", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a workflow as the browser saves it")
    parser.add_argument("-o", "--output", metavar="OUT.json", help="where to write; without it, the standard output")
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI; without it one is started and ended")
    options = parser.parse_args()
    end_on_sigterm()
    workflow = load_workflow(options.file)
    with frontend_somewhere(options.server) as frontend:
        prompt = convert(frontend, workflow)
    if options.output:
        write_json(options.output, prompt)
    else:
        print(json.dumps(prompt, indent=2))


if __name__ == "__main__":
    run_program(main)
