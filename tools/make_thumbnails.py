"""Makes the thumbnails that ComfyUI shows in its templates: runs workflows and writes workflows/NAME.jpg.

    python -m tools.make_thumbnails [workflows/api/NAME.json ...]
"""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from . import ROOT
from .install import Problem, run_program
from .run_workflow import run_on
from .server import end_on_sigterm, running_server
from .stand_ins import load_runnable, stand_ins

WORKFLOWS = ROOT / "workflows"
SIDE, BYTES = 512, 40_000


def is_saved(file):
    """Whether a node saved this picture for good: core names what nodes only show ComfyUI_temp_..."""
    return not Path(file).name.startswith("ComfyUI_temp_")


def thumbnail(picture):
    """The picture as JPEG, ``SIDE`` pixels at its longer side, in at most ``BYTES`` bytes."""
    scale = SIDE / max(picture.size)
    picture = picture.convert("RGB").resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    for quality in range(90, 0, -10):
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= BYTES:
            return data.getvalue()
    raise Problem(f"No JPEG of {picture.size} pixels fits into {BYTES} bytes: make the workflow's picture calmer.")


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.make_thumbnails", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="workflows in API format (default: all)")
    files = parser.parse_args().files or sorted((WORKFLOWS / "api").glob("*.json"))
    end_on_sigterm()
    prompts = {file: load_runnable(file) for file in files}
    with stand_ins() as arguments, running_server(*arguments) as server, tempfile.TemporaryDirectory() as folder:
        for file, prompt in prompts.items():
            made = sorted(filter(is_saved, run_on(server, prompt, folder)["files"]))  # branches run in any order
            if not made:
                raise Problem(f"{file} makes no picture: add Save Image.")
            target = WORKFLOWS / f"{file.stem}.jpg"
            part = target.with_suffix(".part")
            part.write_bytes(thumbnail(Image.open(made[0])))
            part.replace(target)
            print(target)


if __name__ == "__main__":
    run_program(main)
