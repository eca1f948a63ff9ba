"""A server ends with what started it, however that ends, and leaves nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tools import ROOT
from tools.install import CACHE, Problem
from tools.run_workflow import run_on
from tools.server import running_server

HOLD = ("from tools.server import end_on_sigterm, running_server\nimport time\nend_on_sigterm()\n"
        "with running_server() as server:\n    print(server.url, server.process.pid, server.log.parent, flush=True)\n"
        "    time.sleep(600)")


def gone(pid, seconds=15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_the_server_ends_with_its_program(sent):
    program = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    url, pid, folder = program.stdout.readline().split()
    urllib.request.urlopen(url + "/system_stats").close()
    program.send_signal(sent)
    program.wait(20)
    assert gone(int(pid))
    if sent == signal.SIGKILL:
        shutil.rmtree(folder)  # nobody was left to do it
    assert not Path(folder).exists()


def test_a_server_that_dies_is_reported_with_its_log():
    prompt = {"1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
              "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}}
    complaint = re.compile(r"ComfyUI ended \(status -9\).*To see the GUI", re.DOTALL)
    with pytest.raises(Problem, match=complaint), running_server() as server:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        run_on(server, prompt, ROOT / "output")
    assert not server.log.exists()


def test_a_start_that_fails_shows_the_log():
    with pytest.raises(Problem, match="unrecognized arguments: --no-such-flag"), running_server("--no-such-flag"):
        pass
    assert "--no-such-flag" in (CACHE / "server.log").read_text()
