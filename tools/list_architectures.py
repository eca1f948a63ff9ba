"""Lists the networks of the installed ComfyUI: ``python3 -m tools.host --run -m tools.list_architectures``.

Of each: the models that use it, where its blocks are, how many a tiny instance of it has (the one the tests run), or why the
pack does not describe it.
"""

import ast
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

from . import ROOT
from .inprocess import import_comfyui


def networks():
    """{class of a network: [names of ComfyUI's models that use it]}, read from the source of comfy.model_base."""
    model_base = import_module("comfy.model_base")
    used = {}
    for model in ast.parse(Path(model_base.__file__).read_text("utf-8")).body:
        if isinstance(model, ast.ClassDef):
            for expression in set(map(ast.unparse, _given_networks(model))):
                used.setdefault(_resolve(model_base, expression), []).append(model.name)
    return used


def _given_networks(model):
    """The expressions that this class gives as unet_model: in a call, or as the default of a parameter."""
    for node in ast.walk(model):
        if isinstance(node, ast.keyword):
            named = [(node.arg, node.value)]
        elif isinstance(node, ast.arguments):
            named = [(given.arg, default) for given, default in zip(node.args[::-1], node.defaults[::-1])]
        else:
            continue
        yield from (value for name, value in named if name == "unet_model" and ast.unparse(value) != "unet_model")


def _resolve(module, expression):
    found = module
    for name in expression.split("."):
        found = getattr(found, name)
    return found


def main():
    import_comfyui(cpu=True)
    sys.path.append(str(ROOT / "tests" / "host"))
    from comfyui_distillery.nodes import architectures

    tiny = import_module("tiny_architectures")
    instances = {path: name for name, (path, _, _) in reversed(tiny.NETWORKS.items())}
    for kind, models in networks().items():
        path, architecture = architectures.import_path(kind), architectures.architecture_of(kind)
        print(f"{path} ({', '.join(models)})")
        if architecture is None:
            print(f"    no descriptor: {architectures.NOT_DESCRIBED.get(path, 'nobody has looked yet')}")
        elif path not in instances:
            print("    descriptor not tested: " + ", ".join(group.path for group in architecture.groups))
        else:
            counts = Counter(block.group.path for block in architectures.blocks_of(tiny.build(instances[path])))
            print("    " + ", ".join(f"{group} ({count})" for group, count in counts.items()))


if __name__ == "__main__":
    main()
