"""Choosing a ComfyUI and its Python, linking the pack, ports: what tools.host says when something is not right."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tools import ROOT, host
from tools.install import Problem

pytestmark = pytest.mark.skipif(os.name == "nt", reason="symbolic links")


def run_host(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "tools.host", *arguments], cwd=ROOT, env={**os.environ, **environment},
                          check=False, capture_output=True, text=True)


def comfyui(folder, version="0.30.0"):
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_serving_on_a_port_in_use(taken_port):
    done = run_host("--serve", PORT=str(taken_port))
    assert done.returncode == 1
    assert f"Port {taken_port} is in use" in done.stderr
    assert f"PORT={taken_port + 1}" in done.stderr
    assert done.stdout == ""


def test_a_free_port_is_free():
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    host.check_port(port)


def test_a_port_that_is_no_number():
    done = run_host("--serve", PORT="eighty")
    assert done.returncode == 2
    assert "invalid int value: 'eighty'" in done.stderr


@pytest.mark.parametrize(("version", "fine"), [
    ("0.29.9", False), ("0.3.60", False), ("0.30.0", True), ("0.30.1", True), ("0.100.0", True), ("1.0.0", True),
])
def test_comfyui_version(tmp_path, version, fine):
    folder = comfyui(tmp_path / "ComfyUI", version)
    if fine:
        assert host.check_comfyui(folder) == folder
    else:
        with pytest.raises(Problem, match=f"is {version} and this pack needs 0.30.0"):
            host.check_comfyui(folder)


def test_a_path_without_comfyui(tmp_path):
    done = run_host(COMFYUI_PATH=str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "has no main.py" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_an_old_comfyui_gets_nothing_linked(tmp_path):
    folder = comfyui(tmp_path / "ComfyUI", "0.29.0")
    assert run_host(COMFYUI_PATH=str(folder)).returncode == 1
    assert os.listdir(folder / "custom_nodes") == []


def test_a_python_without_torch(tmp_path):
    folder = comfyui(tmp_path / "ComfyUI")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    done = run_host(COMFYUI_PATH=str(folder))
    assert done.returncode == 1
    assert f"{folder}/.venv/bin/python has no torch" in done.stderr


def test_an_existing_comfyui_with_its_own_python(tmp_path):
    folder = comfyui(tmp_path / "ComfyUI")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)
    done = run_host(COMFYUI_PATH=str(folder))
    assert json.loads(done.stdout) == {"python": f"{tmp_path}/venv/bin/python", "comfyui": str(folder)}
    assert (folder / "custom_nodes" / "ComfyUI-Distillery").resolve() == ROOT
    assert set(os.listdir(folder)) == {"custom_nodes", "main.py", "comfyui_version.py"}


def test_a_comfyui_without_an_environment_runs_with_this_python(tmp_path):
    assert str(host.find_python(comfyui(tmp_path / "ComfyUI"))) == sys.executable


def test_the_link_is_made_once_and_repaired(tmp_path):
    link = tmp_path / "ComfyUI-Distillery"
    link.symlink_to(tmp_path / "moved away")
    for _ in range(2):
        assert host.link_pack(tmp_path) == "ComfyUI-Distillery"
        assert link.resolve() == ROOT


def test_a_checkout_that_is_already_there_under_another_name_stays(tmp_path):
    (tmp_path / "my-distillery").symlink_to(ROOT)
    assert host.link_pack(tmp_path) == "my-distillery"
    assert os.listdir(tmp_path) == ["my-distillery"]


def test_another_copy_of_the_pack_is_not_overwritten(tmp_path):
    (tmp_path / "ComfyUI-Distillery").mkdir()
    with pytest.raises(Problem, match="another copy of this pack"):
        host.link_pack(tmp_path)


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(Problem, match="too old"):
        host.main()


def test_shims_let_torchvision_and_torchaudio_import():
    code = "from tools.launch import apply_shims; apply_shims(); apply_shims(); import torchvision, torchaudio"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
