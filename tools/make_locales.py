"""Writes locales/en/nodeDefs.json from the node schemas, the base for translations.

``python -m tools.host --run -m tools.make_locales``, after a change to a node's words.
"""

import asyncio
import json
import logging

from . import ROOT
from .inprocess import import_comfyui


def inputs_of(entries, prefix=""):
    """Names and tooltips by key; an input beneath a choice has the key that the frontend looks up, ``method_order``."""
    found = {}
    for entry in entries:
        found[prefix + entry.id] = {"name": entry.display_name or entry.id, "tooltip": entry.tooltip}
        for option in getattr(entry, "options", None) or ():
            if hasattr(option, "inputs"):  # a dynamic choice, not a plain list of words
                found |= inputs_of(option.inputs, f"{prefix}{entry.id}_")
    return found


def node_definitions(nodes):
    """What nodeDefs.json must say of these node classes."""
    definitions = {}
    for node in nodes:
        schema = node.GET_SCHEMA()
        outputs = {str(i): {"name": o.display_name or o.io_type, "tooltip": o.tooltip} for i, o in enumerate(schema.outputs)}
        definitions[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": inputs_of(schema.inputs),
            "outputs": outputs,
        }
    return definitions


def main():
    import_comfyui()
    from comfyui_distillery.nodes import Distillery

    nodes = asyncio.run(Distillery().get_node_list())
    path = ROOT / "locales" / "en" / "nodeDefs.json"
    path.write_text(json.dumps(node_definitions(nodes), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    logging.getLogger(__name__).info("wrote %s", path)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
