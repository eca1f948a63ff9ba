"""A ComfyUI server of our own for as long as a ``with`` block lasts."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .host import THREADS, set_up
from .install import CACHE, Problem, say, tail

PATIENCE = 300  # seconds a start may take on a busy machine


@dataclass(frozen=True)
class Server:
    url: str
    log: Path
    process: subprocess.Popen

    def log_tail(self, lines=15):
        return tail(self.log.read_text(errors="replace"), lines)


@contextlib.contextmanager
def running_server(*arguments, only_this_pack=True):
    """Start ComfyUI on a free port of 127.0.0.1 and yield a Server; on leaving, however that happens, it is gone.

    Output, temporary and user folders are its own and go with it. `arguments` are ComfyUI's. ComfyUI's input folder and
    models are the real ones. Without `only_this_pack` other custom nodes and ComfyUI's paid API nodes load too.
    """
    host = set_up()
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="distillery-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "comfyui.log"
        command = host.command(*_folders(folder), "--port", port, "--disable-auto-launch", *arguments, guard=True)
        if only_this_pack:
            command += ["--disable-api-nodes", "--disable-all-custom-nodes", "--whitelist-custom-nodes", host.pack]
        say(f"starting ComfyUI on http://127.0.0.1:{port}")
        with log.open("wb") as output, _ended(subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=host.comfyui,
            env={**os.environ, **THREADS}, start_new_session=True,
        )) as process:
            server = Server(f"http://127.0.0.1:{port}", log, process)
            try:
                _wait_until_it_answers(server)
                _warn_if_not_loaded(host.pack, log)
                yield server
            finally:
                CACHE.mkdir(exist_ok=True)
                shutil.copy(log, CACHE / "server.log")


def _warn_if_not_loaded(pack, log):
    lines = [line for line in log.read_text(errors="replace").splitlines() if pack in line]
    if any("IMPORT FAILED" in line for line in lines):
        say("ComfyUI could not load this pack:\n" + "\n".join(lines))


def end_on_sigterm():
    """Let SIGTERM leave every ``with`` block, as Ctrl-C does. For the start of a program."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _free_port():
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return finder.getsockname()[1]


def _folders(folder):
    for name in ("output", "temp", "user"):
        path = Path(folder) / name
        path.mkdir()
        yield f"--{name}-directory"
        yield path
    yield "--database-url"
    yield "sqlite:///:memory:"


@contextlib.contextmanager
def _ended(process):
    try:
        yield process
    finally:
        if os.name == "nt":
            process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its folders are ours: nothing needs a gentle end
        process.stdin.close()
        process.wait()


def _wait_until_it_answers(server):
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        if server.process.poll() is not None:
            raise Problem(f"ComfyUI ended while it started (status {server.process.returncode}):\n"
                          f"{server.log_tail()}\nThe whole log is in {CACHE / 'server.log'}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(server.url + "/system_stats", timeout=5).close()
            say(f"ComfyUI answers after {time.monotonic() - start:.1f} s")
            return
        time.sleep(0.1)
    raise Problem(f"ComfyUI gave no answer in {PATIENCE} s:\n{server.log_tail()}\n"
                  f"The whole log is in {CACHE / 'server.log'}")
