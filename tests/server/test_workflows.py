"""Every bundled workflow runs headless, makes its pictures, and reports the model evaluations it should need."""

import pytest
from PIL import Image, ImageStat

from tools import ROOT
from tools.make_thumbnails import is_saved
from tools.run_workflow import run_on
from tools.stand_ins import load_runnable

FILES = sorted((ROOT / "workflows" / "api").glob("*.json"))
WORK = {  # pictures, and steps of each sampling run; guided, a step is two evaluations, else (steps, evaluations or their range)
    "01-first-picture": (1, [20]),
    "02-compare": (1, [30, 8]),
    "03-metrics": (16, [4, 20]),
    "04-sweep": (2, [40]),  # the runs of the sweep are in its own table
    "10-momentum-sampler": (4, [8]),
    "11-lambda-ddim": (1, [10]),
    "12-uniform-lambda": (1, [20]),
    "15-invert-edit": (2, [(20, 80), (20, 80)]),  # Invert and the edit, two calls a step
    "18-schedules": (1, [16]),
    "19-auto": (4, [8]),
    "13-solvers": (1, [60, 8, 8, 8]),
    "14-stochastic": (4, [20]),
    "16-parallel": (1, [(16, range(12, 32)), 16]),  # in parallel: about eleven rounds, which the last digits may change
    "17-per-step": (8, [8, (8, 12)]),  # the shortcut skips two steps
    "20-apg": (2, [20, 20]),
    "21-adaptive": (10, [20, (20, range(24, 32))]),
    "22-smart": (4, [(20, range(22, 30))]),
    "24-autoguidance": (4, [(20, 60)]),
    "25-prompt-guidance": (4, [(20, 60)]),
    "27-cache-dit": (10, [(25, range(14, 34)), 25]),  # by measured errors, which the last digits may change
    "28-cache-unet": (10, [25, 25]),  # parts of evaluations are skipped, none as a whole
    "29-cache-parts": (10, [25, 25]),
    "30-token-pruning": (10, [25, 25]),  # every evaluation runs, for fewer tokens
    "31-cache-video": (2, [(30, range(8, 50))]),
    "05-four-steps": (9, [(4, 4), 25]),
    "32-distill": (4, [(4, 4)]),  # Compare Steps counts its own
    "33-guidance-free": (5, [20, (20, 20)]),
    "35-export-run": (1, [20]),
    "34-turbo-loras": (5, [(4, 4), (4, 4)]),
    "40-diffusers-scheduler": (4, [16]),
    "41-few-step-samplers": (6, [(4, 4), (8, 8), (4, 4)]),
    "36-turbo": (9, [(4, 4), 25]),
    "37-turbo-img2img": (3, [(2, 2), (3, 3)]),
    "38-turbo-inpaint": (3, [(4, 4)]),
    "39-turbo-lora": (4, [(4, 4)]),
    "42-turbo-edit": (3, [(4, 8)]),  # two prompts a step
    "26-guider": (4, [(20, range(24, 30))]),
    "23-discriminator": (8, [25, 6, 6, 6]),
}
PLOTS = {  # their picture is a plot, and larger
    "21-adaptive", "02-compare", "16-parallel", "04-sweep", "13-solvers", "27-cache-dit", "28-cache-unet", "29-cache-parts",
    "05-four-steps", "30-token-pruning", "31-cache-video", "32-distill", "33-guidance-free", "34-turbo-loras",
    "36-turbo", "38-turbo-inpaint", "42-turbo-edit",
}  # fmt: skip


def least(run):
    steps, evaluations = run
    return steps, evaluations[0] if isinstance(evaluations, range) else evaluations


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs(server, tmp_path, file):
    result = run_on(server, load_runnable(file), tmp_path)
    pictures = [Image.open(made) for made in filter(is_saved, result["files"])]
    count, work = WORK[file.stem]
    runs = sorted((run if isinstance(run, tuple) else (run, 2 * run) for run in work), key=least)
    assert len(pictures) == count
    assert file.stem in PLOTS or {picture.size for picture in pictures} == {(128, 128)}
    assert all(max(ImageStat.Stat(picture).stddev) > 5 for picture in pictures), "one flat colour"
    reported = [(report["steps"], report["evaluations"]) for report in result["reports"]]
    assert [steps for steps, _ in sorted(reported)] == [steps for steps, _ in runs]  # branches run in any order
    for (_, evaluations), (_, expected) in zip(sorted(reported), runs):
        least_of, most_of = (expected[0], expected[-1]) if isinstance(expected, range) else (expected, expected)
        assert least_of <= evaluations <= most_of  # a fraction where some items of a batch were skipped
        assert f"{evaluations} model evaluations" in "\n".join(result["texts"])
    assert result["evaluations"] == sum(evaluations for _, evaluations in reported)
