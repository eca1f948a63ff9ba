"""The programs behind the Makefile, run as ``python -m tools.<name>`` from the repository root."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "comfyui_distillery"


def register_package():
    """Make the checkout importable as ``comfyui_distillery``, without ComfyUI and without running its entry point."""
    if PACKAGE in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)


register_package()
