"""Imports go one way, and files stay small: read from the syntax trees, so nothing has to run."""

import ast
import re
import sys
from pathlib import Path

import pytest
from comfyui_distillery.distill.objectives import OBJECTIVES
from comfyui_distillery.samplers.caching import FORECASTS, POLICIES
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.schedules import SCHEDULES
from comfyui_distillery.samplers.solvers import SOLVERS

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {  # folder: which of our folders, and which packages beside the standard library, it may import
    "samplers": ({"samplers"}, {"torch", "diffusers"}),
    "measure": ({"measure"}, {"torch", "numpy", "PIL", "safetensors", "matplotlib", "torchmetrics", "torchvision"}),
    "distill": ({"distill", "samplers", "measure"}, {"torch", "numpy", "safetensors", "diffusers", "accelerate"}),
    "nodes": ({"nodes", "distill", "samplers", "measure"}, None),  # None: any, ComfyUI among them
}
OPTIONAL = {"diffusers", "matplotlib", "torchmetrics", "torchvision"}  # heavy, or not brought by ComfyUI
KNOW_COMFYUI = {"nodes", "tools", "bench", "tests"}  # tools and bench are programs that run beside a host
LIMIT = 300  # lines
BANNED_MODULES = {"pickle", "cPickle", "dill", "shelve"}
BANNED_CALLS = {"print", "eval", "exec"}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def ours():
    """Every Python file of the checkout outside .venv, .comfyui and the like."""
    hidden = (path for path in ROOT.rglob("*.py") if not any(part[0] == "." for part in path.relative_to(ROOT).parts))
    return sorted(path for path in hidden if "node_modules" not in path.parts)


def imports(source, file):
    """(folder of ours or None, package or None, at module top?) for each import in the file; file relative to the root."""
    tree = ast.parse(source)
    lazy = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        top = id(node) not in lazy
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield None, alias.name.split(".")[0], top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield None, node.module.split(".")[0], top
        elif isinstance(node, ast.ImportFrom):
            parents = file.parts[: len(file.parts) - node.level]
            for alias in node.names:
                target = (*parents, *(node.module or alias.name).split("."))
                yield target[0], None, top


def import_faults(source, file):
    folder = file.parts[0]
    allowed_folders, allowed_packages = MAY_IMPORT[folder]
    for target, package, top in imports(source, file):
        if target is not None and target not in allowed_folders:
            yield f"{file} imports our {target}/"
        if package in {*MAY_IMPORT, "comfyui_distillery", "tools", "tests", "bench"}:
            yield f"{file} imports {package} by absolute name: in ComfyUI that finds another module"
        elif allowed_packages is not None and package not in {None, *sys.stdlib_module_names, *allowed_packages}:
            yield f"{file} imports {package}"
        if package in OPTIONAL and top:
            yield f"{file} imports {package} at its top: it is heavy and optional"


def host_faults(source, file):
    for _, package, top in imports(source, file):
        if package and package.split("_")[0] == "comfy" and file.parts[0] not in KNOW_COMFYUI:
            yield f"{file} imports {package}: of the pack, only nodes/ may"
        if package == "diffusers" and top:
            yield f"{file} imports diffusers at its top: it is heavy and optional"


def banned_faults(source, file):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            yield f"{file}:{node.lineno} calls {node.func.id}()"
        keywords = {keyword.arg: keyword.value for keyword in getattr(node, "keywords", ())}
        unpickles = isinstance(keywords.get("weights_only"), ast.Constant) and keywords["weights_only"].value is False
        if isinstance(node, ast.Call) and unpickles:
            yield f"{file}:{node.lineno} loads a pickle (weights_only=False)"
    yield from (f"{file} imports {package}" for _, package, _ in imports(source, file) if package in BANNED_MODULES)


def check(paths, faults):
    relative = ((path, path.relative_to(ROOT)) for path in paths)
    found = [fault for path, file in relative for fault in faults(path.read_text("utf-8"), file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder):
    check(sources(folder), import_faults)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_nothing_prints_evaluates_or_unpickles(folder):
    check(sources(folder), banned_faults)


def test_of_the_pack_only_nodes_know_comfyui_and_nobody_loads_diffusers_early():
    check([path for path in ours() if path.relative_to(ROOT).parts[0] != "tests"], host_faults)


def test_files_are_small():
    long = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in ours()}
    assert not {file: lines for file, lines in long.items() if lines > LIMIT}


@pytest.mark.parametrize(
    "registry",
    [SOLVERS, SCHEDULES, RULES, POLICIES, FORECASTS, OBJECTIVES],
    ids=["solvers", "schedules", "guidance", "policies", "forecasts", "objectives"],
)
def test_every_method_is_in_the_table_of_methods(registry):
    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    assert not [key for key in registry if f"| `{key}` |" not in text]


@pytest.mark.parametrize("page", ["methods.md", "metrics.md"])
def test_the_tables_of_the_guides_name_tests_that_exist(page):
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text("utf-8")))
    tests = "".join(path.read_text("utf-8") for path in sources("tests"))
    assert named and not [name for name in named if f"def {name}(" not in tests]


def test_there_is_something_to_check():
    assert {path.name for path in sources("samplers")} >= {"core.py", "path.py", "noise.py"}
    assert Path(__file__).resolve() in ours()


@pytest.mark.parametrize(
    "faults, file, source",
    [
        (import_faults, "samplers/solvers/heun.py", "import comfy.samplers"),
        (import_faults, "samplers/solvers/heun.py", "import numpy as np"),
        (import_faults, "samplers/solvers/heun.py", "from ...nodes import host"),
        (import_faults, "samplers/solvers/heun.py", "from ... import distill"),
        (import_faults, "samplers/core.py", "from samplers.path import Path"),
        (import_faults, "samplers/core.py", "def late():\n    import scipy"),
        (import_faults, "distill/train.py", "from ..nodes.host import path_of"),
        (import_faults, "measure/report.py", "from ..samplers.core import to_d"),
        (import_faults, "nodes/solvers.py", "import diffusers"),
        (host_faults, "measure/report.py", "from comfy_api.latest import io"),
        (host_faults, "bench/run.py", "from diffusers import DDIMScheduler"),
        (banned_faults, "nodes/solvers.py", "def f():\n    print('hello')"),
        (banned_faults, "nodes/solvers.py", "eval('1 + 1')"),
        (banned_faults, "distill/export.py", "import pickle"),
        (banned_faults, "distill/export.py", "torch.load(f, weights_only=False)"),
    ],
)
def test_each_rule_can_fail(faults, file, source):
    assert list(faults(source, Path(file)))


@pytest.mark.parametrize(
    "faults, file, source",
    [
        (import_faults, "samplers/solvers/heun.py", "import math\nimport torch.nn\nfrom ..core import to_d"),
        (import_faults, "samplers/solvers/heun.py", "from . import tableaus\nfrom .. import core"),
        (import_faults, "distill/export.py", "def late():\n    import diffusers"),
        (import_faults, "nodes/solvers.py", "from comfy_api.latest import io\nfrom ..samplers.solvers import SOLVERS"),
        (banned_faults, "distill/train.py", "model.eval()\nimport json"),
    ],
)
def test_what_is_allowed_passes(faults, file, source):
    assert not list(faults(source, Path(file)))
