"""The judge reads fresh pictures of the data set right, whatever their size, and refuses what is no picture."""

import random

import pytest
import torch
from comfyui_distillery.measure.judge import Judge, load_judge

from tools import shapes
from tools.train_judge import LABELS, accuracy, right, targets


@pytest.fixture(scope="module")
def judge():
    return load_judge()


def scenes_and_images(count, seed=0, **options):
    rng = random.Random(seed)
    scenes = [shapes.random_scene(rng, **options) for _ in range(count)]
    return scenes, shapes.draw(scenes).movedim(1, -1)


def test_fresh_pictures_are_read_right(judge):
    whole, named = accuracy(judge, count=400)
    assert named >= 0.98 and whole >= 0.97


def test_a_wrong_picture_is_read_as_wrong(judge):
    scenes, images = scenes_and_images(60)
    assert sum(right(scene, read) for scene, read in zip(scenes, judge.read(images.roll(1, 0)), strict=True)) == 0


def test_pictures_of_another_size_are_read_too(judge):
    rng = random.Random(3)
    scenes = [shapes.random_scene(rng) for _ in range(40)]
    reads = judge.read(shapes.draw(scenes, resolution=320).movedim(1, -1))
    assert sum(map(right, scenes, reads)) >= 38


def test_probabilities_name_the_object(judge):
    scenes, images = scenes_and_images(40, two_objects=0)
    probabilities = judge.probabilities(images)
    assert probabilities.shape == (40, 70)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(40))
    names = [(shape, colour) for shape in LABELS["shapes"] for colour in LABELS["colours"]]
    best = [names[i] for i in probabilities.argmax(1)]
    assert sum(name == (s.items[0].shape, s.items[0].colour) for name, s in zip(best, scenes, strict=True)) >= 39


def test_targets_say_what_is_where():
    scene = shapes.Scene((shapes.Item("star", "red", "large", "top left"), shapes.Item("ring", "blue", "small", "right")), "white", 1)
    background, (shape, colour, size) = targets([scene])
    assert background.tolist() == [8]
    left, right_ = (list(shapes.POSITIONS).index(place) for place in ("top left", "right"))
    assert shape[0].nonzero().flatten().tolist() == [left, right_]
    assert (shape[0, left], colour[0, left], size[0, left]) == (4, 0, 2)
    assert (shape[0, right_], colour[0, right_], size[0, right_]) == (5, 5, 0)
    assert (colour[0] == -1).sum() == 7


def test_right_minds_every_named_attribute():
    scene = shapes.Scene((shapes.Item("star", "red", "large", "top left"),), "white", 1)
    read = {"background": "white", "objects": [{"shape": "star", "colour": "red", "size": "small", "position": "top left"}]}
    assert right(scene, read) and not right(scene, read, ("shape", "size"))
    for wrong in ({"shape": "ring"}, {"colour": "blue"}, {"position": "top"}):
        assert not right(scene, {**read, "objects": [read["objects"][0] | wrong]})
    assert not right(scene, {**read, "background": "black"})
    assert not right(scene, {**read, "objects": 2 * read["objects"]}) and not right(scene, {**read, "objects": []})


def test_what_is_no_image_or_no_file_is_refused(judge, tmp_path):
    with pytest.raises(ValueError, match=r"images.*\(128, 128, 3\)"):
        judge.features(torch.zeros(128, 128, 3))
    with pytest.raises(ValueError, match="git checkout models"):
        load_judge(tmp_path / "none.safetensors")


def test_features_see_each_picture_by_itself(judge):
    _, images = scenes_and_images(6)
    torch.testing.assert_close(judge.features(images)[2:3], judge.features(images[2:3]), rtol=1e-4, atol=1e-4)
    assert isinstance(judge, Judge)
