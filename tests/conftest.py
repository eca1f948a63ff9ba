"""Makes the checkout importable as ``comfyui_distillery`` and pins threads (a busy core makes OpenMP spin: 30x slower)."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.append(str(Path(__file__).resolve().parent.parent))  # last: ComfyUI's own `nodes` must win over ours

import tools  # noqa: F401
