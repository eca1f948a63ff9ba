"""Brings up ComfyUI with this pack linked into it: ``python -m tools.host`` prints its interpreter and folder as JSON.

``--serve`` serves on http://127.0.0.1:8188, ``--test`` runs the tests, ``--run`` gives the interpreter what follows.
Only the standard library: this runs before there is a virtual environment.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import ROOT
from .install import (
    CACHE,
    COMFYUI,
    Problem,
    Stamp,
    call,
    install_packages,
    make_venv,
    run_program,
    say,
    unpack_comfyui,
    venv_python,
)

NEEDED_PYTHON = (3, 10)
NEEDED_COMFYUI = (0, 30, 0)
PACK = "ComfyUI-Distillery"
LAUNCH = ROOT / "tools" / "launch.py"
THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class Host:
    python: str
    comfyui: Path
    pack: str  # the pack's folder name in custom_nodes
    gpu: bool
    shims: bool

    def command(self, *arguments, guard=False):
        """The command line that starts ComfyUI with these arguments of its own."""
        flags = ["--shims"] * self.shims + ["--guard"] * guard
        cpu = [] if self.gpu else ["--cpu"]
        return [self.python, str(LAUNCH), *flags, str(self.comfyui), *cpu, *map(str, arguments)]


def set_up(extras=False):
    """Everything ComfyUI needs, made where it is missing: from COMFYUI_PATH if that is set, else in this checkout."""
    given = os.environ.get("COMFYUI_PATH")
    if given and Path(given).resolve() != COMFYUI:
        comfyui = check_comfyui(Path(given).expanduser().resolve())
        python = find_python(comfyui)
    else:
        comfyui, python = COMFYUI, venv_python()
        make_venv()
        unpack_comfyui()
        install_packages(extras)
    pack = link_pack(comfyui / "custom_nodes")
    facts = probe(python)
    return Host(str(python), comfyui, pack, facts["gpu"], facts["shims"])


def check_comfyui(folder):
    version_file = folder / "comfyui_version.py"
    if not (folder / "main.py").is_file():
        raise Problem(f"COMFYUI_PATH={folder} has no main.py: give ComfyUI's own folder, or leave COMFYUI_PATH out.")
    text = version_file.read_text() if version_file.is_file() else ""
    found = re.search(r'__version__ = "(\d+)\.(\d+)\.(\d+)', text)
    if found is None or tuple(map(int, found.groups())) < NEEDED_COMFYUI:
        version = ".".join(found.groups()) if found else "older than 0.3"
        needed = ".".join(map(str, NEEDED_COMFYUI))
        raise Problem(f"ComfyUI in {folder} is {version} and this pack needs {needed}: update it, "
                      "or leave COMFYUI_PATH out to have one set up here.")
    return folder


def find_python(comfyui):
    """The interpreter an existing ComfyUI runs with: of a virtual environment in or beside it, else this one."""
    for folder in (comfyui, comfyui.parent):
        for name in (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe",
                     "python_embeded/python.exe"):
            if (folder / name).exists():
                return folder / name
    return Path(sys.executable)


def link_pack(custom_nodes):
    """Make this checkout one of ComfyUI's custom nodes and return the folder name it has there."""
    for entry in custom_nodes.iterdir():
        if entry.resolve() == ROOT:
            return entry.name
    link = custom_nodes / PACK
    if link.is_symlink() and not link.exists():
        link.unlink()  # of a checkout that has moved or gone
    if os.path.lexists(link):
        raise Problem(f"{link} is another copy of this pack: remove it, or run make there.")
    say(f"linking this checkout to {link}")
    if os.name == "nt":
        linked, said = call("cmd", "/c", "mklink", "/J", link, ROOT)
        if not linked:
            raise Problem(f"Windows made no junction {link}:\n{said}\nCopy or clone this folder there instead.")
    else:
        link.symlink_to(ROOT, target_is_directory=True)
    return PACK


def probe(python):
    """What this interpreter's torch can do, asked once for each set of packages and drivers."""
    code = ("import importlib.util, pathlib; torch = pathlib.Path(importlib.util.find_spec('torch').origin); "
            "print(torch, torch.parent.parent.stat().st_mtime)")
    found, packages = call(python, "-c", code)
    if not found:
        raise Problem(f"{python} has no torch: install ComfyUI's requirements with it. If ComfyUI runs with another Python "
                      "that is not in or beside its folder, give that one (make PYTHON=/path/to/python ...); or leave "
                      "COMFYUI_PATH out to have a ComfyUI set up here.")
    answer = Stamp(CACHE, "torch", python, packages, bool(shutil.which("nvidia-smi")))
    if not answer.fresh():
        say(f"asking {python} what its torch can do")
        imported, said = call(python, LAUNCH, "--probe")
        if not imported:
            raise Problem(f"{python} cannot import torch:\n{said}\nReinstall torch there, or leave COMFYUI_PATH out.")
        answer.write(said.splitlines()[-1])
    return json.loads(answer.read())


# The command line


def check_port(port):
    with socket.socket() as attempt:
        if os.name != "nt":  # there it would allow a port in use
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError as error:
            raise Problem(f"Port {port} is in use ({error.strerror}): stop the program that has it, or choose another: "
                          f"make serve PORT={port + 1}") from error


def pytest_command(python):
    """Not python -m pytest: the current folder would come first on its path and win over ComfyUI's own `nodes`."""
    pytest = Path(python).with_name("pytest.exe" if os.name == "nt" else "pytest")
    if not pytest.exists():
        raise Problem(f"{pytest} is missing: run `{python} -m pip install pytest`, or make test without COMFYUI_PATH.")
    return str(pytest)


def side_by_side(python, arguments):
    """pytest's options for two files of tests at a time or more, where the whole suite is asked for and pytest-xdist is there."""
    if arguments or not call(python, "-c", "import xdist")[0]:
        return []
    return ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile"]


def become(command, environment):
    """Put the command in this program's place, so that signals and the exit status are its own."""
    if os.name == "nt":
        sys.exit(subprocess.call(command, env=environment))
    os.execve(command[0], command, environment)


def main():
    if sys.version_info < NEEDED_PYTHON:
        raise Problem(f"Python {sys.version.split()[0]} is too old: run make PYTHON=/path/to/python3.10 (or newer) ...")
    parser = argparse.ArgumentParser(prog="python -m tools.host", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="serve ComfyUI with the pack until Ctrl-C")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT") or 8188, help="for --serve; or set PORT")
    parser.add_argument("--test", nargs=argparse.REMAINDER, help="run the tests; what follows goes to pytest")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help="run the interpreter on what follows")
    options = parser.parse_args()
    if options.serve:
        check_port(options.port)
    host = set_up(extras=options.test is not None)
    environment = {**os.environ, "COMFYUI_PATH": str(host.comfyui)}
    if options.serve:
        say(f"serving on http://127.0.0.1:{options.port} (Ctrl-C stops)")
        become(host.command("--port", options.port), {**THREADS, **environment})
    if options.test is not None:
        become([pytest_command(host.python), *side_by_side(host.python, options.test), *options.test], environment)
    if options.run is not None:
        become([host.python, *options.run], {**THREADS, **environment})
    print(json.dumps({"python": host.python, "comfyui": str(host.comfyui)}))


if __name__ == "__main__":
    run_program(main)
