"""The workflow that edits a picture by inverting it: the plain round trip is exact, the edit changes the object alone."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tools import ROOT
from tools.prompt import load_prompt
from tools.run_workflow import run_on


def test_the_round_trip_gives_the_picture_and_the_edit_keeps_the_background(server, tmp_path):
    result = run_on(server, load_prompt(ROOT / "workflows" / "api" / "15-invert-edit.json"), tmp_path)
    (error,) = re.findall(r"latent relative error (\S+)", "\n".join(result["texts"]))
    assert float(error) < 1e-5

    pictures = {Path(file).name.split("_")[0]: np.asarray(Image.open(file), dtype=float) / 255 for file in result["files"]}
    before, after = pictures["invert-picture"], pictures["invert-edit"]
    margin = np.ones((128, 128), dtype=bool)
    margin[16:112, 16:112] = False
    assert abs(after - before)[margin].mean() < 0.03
    middle = np.s_[56:72, 56:72]
    yellow, red = before[middle].mean((0, 1)), after[middle].mean((0, 1))
    assert yellow[0] > 0.7 and yellow[1] > 0.6 and yellow[2] < 0.4
    assert red[0] > 0.7 and red[1] < 0.4 and red[2] < 0.4
