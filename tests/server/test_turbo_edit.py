"""The workflow that edits a picture in four steps: the judge reads the new colour, and the rest as it was."""

from pathlib import Path

import numpy as np
import torch
from comfyui_distillery.measure.judge import load_judge
from PIL import Image

from tools import ROOT
from tools.prompt import load_prompt
from tools.run_workflow import run_on


def test_the_star_changes_its_colour_and_nothing_else(server, tmp_path):
    result = run_on(server, load_prompt(ROOT / "workflows" / "api" / "42-turbo-edit.json"), tmp_path)
    pictures = {Path(file).name.split("_")[0]: np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in result["files"]}
    before, after = pictures["original"], pictures["edited"]
    star, ring = (
        {"shape": shape, "colour": colour, "size": size, "position": place}
        for shape, colour, size, place in (("star", "red", "large", "left"), ("ring", "white", "small", "right"))
    )
    assert load_judge().read(torch.from_numpy(np.stack([before, after]))) == [
        {"background": "blue", "objects": [star, ring]},
        {"background": "blue", "objects": [{**star, "colour": "green"}, ring]},
    ]
    assert abs(after - before)[:, 72:].mean() < 0.015  # image-to-image of the same share: 0.02
    assert any("DDCM" in text for text in result["texts"])
