"""Every bundled workflow runs headless, makes its pictures, and reports the model evaluations it should need."""

import pytest
from PIL import Image, ImageStat

from tools import ROOT
from tools.make_thumbnails import is_saved
from tools.prompt import load_prompt
from tools.run_workflow import run_on

FILES = sorted((ROOT / "workflows" / "api").glob("*.json"))
WORK = {  # pictures, and steps of each sampling run; guided with a negative prompt, a step is two evaluations
    "01-first-picture": (1, [20]),
    "02-compare": (1, [30, 8]),
    "04-sweep": (2, [40]),  # the runs of the sweep are in its own table
    "10-momentum-sampler": (4, [8]),
    "11-lambda-ddim": (1, [10]),
    "12-uniform-lambda": (1, [20]),
    "20-apg": (2, [20, 20]),
}
PLOTS = {"02-compare", "04-sweep"}  # their picture is a plot, and larger


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs(server, tmp_path, file):
    result = run_on(server, load_prompt(file), tmp_path)
    pictures = [Image.open(made) for made in filter(is_saved, result["files"])]
    count, steps = WORK[file.stem]
    assert len(pictures) == count
    assert file.stem in PLOTS or {picture.size for picture in pictures} == {(128, 128)}
    assert all(max(ImageStat.Stat(picture).stddev) > 5 for picture in pictures), "one flat colour"
    assert sorted(report["steps"] for report in result["reports"]) == sorted(steps)  # branches run in any order
    assert result["evaluations"] == 2 * sum(steps)
    assert all(f"{2 * run} model evaluations" in "\n".join(result["texts"]) for run in steps)
