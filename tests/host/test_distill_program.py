"""python -m tools.distill on a JSON file written by hand: the same session without the graph."""

import json

import pytest
from comfyui_distillery.distill.formats import read_profile
from comfyui_distillery.distill.recipe import Recipe

from tools.distill import job_in, train

SMALL = Recipe("phased", {"phases": 2, "substeps": 1}, data={"count": 2, "teacher_steps": 1}, lora={"rank": 2}, run={"steps": 2, "batch": 1})
JOB = {
    "model": {"loader": "demo", "file": "shapes-dit"}, "latent": [16, 16, 16], "prompts": ["a {red|blue} star"],
    "recipe": SMALL.to_json(), "run": {"seed": 5},
}  # fmt: skip


@pytest.fixture
def job(tmp_path):
    def write(**changes):
        file = tmp_path / "mine.json"
        file.write_text(json.dumps({key: value for key, value in {**JOB, **changes}.items() if value is not None}))
        return file

    return write


def test_a_job_written_by_hand_trains_beside_its_file_and_goes_on_from_there(job):
    file = job()
    done = train(file, quiet=True)
    assert done.folder == file.with_suffix("") and done.file == done.folder / "mine.safetensors" and done.trained == 2
    assert read_profile(done.file).steps == 2
    assert train(done.folder, steps=3, quiet=True).trained == 1  # the folder alone: the model is named in it


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"goals": "4_steps"}, "it has 'goals'"),
        ({"prompts": None}, "it has no 'prompts'"),
        ({"prompts": [" "]}, "holds no prompt"),
        ({"model": {"loader": "demo", "file": "shapes"}}, "model.file is 'shapes': of the bundled models"),
        ({"model": {"file": "x"}}, "names no model to load"),
        ({"recipe": None, "goal": "3_steps"}, "goal is '3_steps'"),
        ({"run": {"batch": 0}}, "batch"),
    ],
)
def test_what_is_wrong_with_a_job_is_named(job, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        job_in(job(**changes), None, 0)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run that can be read"):
        job_in(tmp_path, None, 0)
