"""The training loop of the bundled models, and the data they learn from."""

import os
import random
import subprocess
import sys

import pytest
import torch

from tools import ROOT, shapes
from tools.training import as_kernels, as_matrices, load, train


def problem(stop_at=None):
    """A small network and a loss whose randomness comes from the step alone; interrupted at ``stop_at``."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss(step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (network(x)[:, 0] - x.sum(1)).square().mean()

    return network, loss


def test_an_interrupted_training_resumes_exactly(tmp_path):
    whole, loss = problem()
    train(whole, loss, 12, tmp_path / "whole", peak=1e-2)

    stopped, loss = problem(stop_at=7)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, loss, 12, tmp_path / "resumed", peak=1e-2)
    resumed, loss = problem()
    train(resumed, loss, 12, tmp_path / "resumed", peak=1e-2)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    ends = [load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "resumed")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0].keys() | ends[1].keys())


TWO_WORKERS = """
import sys, torch
from pathlib import Path
from tools.training import from_all_workers, join_workers, train, workers
join_workers()
torch.manual_seed(0)
network = torch.nn.Linear(4, 1)
def loss(step):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return (network(x)[:, 0] - x.sum(1)).square().mean()
train(network, loss, 9, Path(sys.argv[1]), peak=1e-2)
dealt = from_all_workers(torch.tensor([[workers()[0] + 0.0], [workers()[0] + 10.0]]))
torch.save({**network.state_dict(), "dealt": dealt}, f"{sys.argv[1]}/{workers()[0]}.pt")
"""


def test_two_workers_take_the_steps_of_one_with_both_batches(tmp_path):
    (tmp_path / "program.py").write_text(TWO_WORKERS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", tmp_path / "program.py", tmp_path]
    subprocess.run(launch, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    ends = [torch.load(tmp_path / f"{worker}.pt", weights_only=True) for worker in range(2)]

    torch.manual_seed(0)
    network = torch.nn.Linear(4, 1)

    def loss(step):
        x = torch.cat([torch.randn(16, 4, generator=torch.Generator().manual_seed(2 * step + worker)) for worker in range(2)])
        return (network(x)[:, 0] - x.sum(1)).square().mean()

    train(network, loss, 9, tmp_path / "one", peak=1e-2)
    for name, value in network.state_dict().items():
        assert torch.equal(ends[0][name], ends[1][name])
        torch.testing.assert_close(value, ends[0][name])
    assert [end["dealt"].flatten().tolist() for end in ends] == 2 * [[0, 1, 10, 11]]


def test_kernels_trained_as_matrices_are_the_same_kernels(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1))
    x, names = torch.randn(2, 3, 8, 8), set(network.state_dict())
    before = network(x)
    as_matrices(network)
    assert torch.equal(network(x), before)
    train(network, lambda step: network(x).square().mean(), 200, tmp_path, peak=1e-2, muon=True)
    after = network(x)
    as_kernels(network)
    assert torch.equal(network(x), after) and set(network.state_dict()) == names
    assert after.square().mean() < 0.8 * before.square().mean()
    state = load(tmp_path / "checkpoint.safetensors")[0]
    assert len([name for name in state if name.startswith("momentum_buffer.")]) == 2  # the kernels; the biases are AdamW's


def test_training_lowers_the_loss(tmp_path):
    network, loss = problem()
    before = loss(1000).item()
    train(network, loss, 300, tmp_path, peak=1e-2)
    assert loss(1000).item() < 0.2 * before


def test_a_scene_is_drawn_the_same_every_time_and_by_itself():
    rng = random.Random(3)
    scenes = [shapes.random_scene(rng) for _ in range(6)]
    together = shapes.draw(scenes)
    assert together.shape == (6, 3, 128, 128) and 0 <= together.min() and together.max() <= 1
    for scene, picture in zip(scenes, together, strict=True):
        torch.testing.assert_close(shapes.draw([scene])[0], picture)


@pytest.mark.parametrize("kind", shapes.KINDS)
@pytest.mark.parametrize("size", shapes.SIZES)
def test_a_shape_is_where_and_as_big_as_its_words_say(kind, size):
    item = shapes.Item(kind, "red", size, "top left")
    empty = shapes.draw([shapes.Scene((), "white", 5)])
    changed = (shapes.draw([shapes.Scene((item,), "white", 5)]) - empty).abs().amax(1)[0] > 0.2
    rows, columns = changed.nonzero().unbind(1)
    side = 128 * 2 * shapes.SIZES[size]
    for extent, place in zip((columns, rows), shapes.POSITIONS["top left"], strict=True):
        assert 0.75 * side < extent.max() - extent.min() < 1.25 * side
        off_center = abs((extent.max() + extent.min()) / 2 / 128 - place)
        assert off_center < 0.03 + 0.3 * shapes.SIZES[size]  # a triangle reaches higher than it reaches low


def test_shapes_differ_in_more_than_a_few_pixels():
    drawn = [shapes.draw([shapes.Scene((shapes.Item(kind, "black", "large", "center"),), "white", 5)]) for kind in shapes.KINDS]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert ((a - b).abs().amax(1) > 0.5).float().mean() > 0.01


def test_two_objects_never_touch():
    rng = random.Random(0)
    pairs = [scene.items for scene in (shapes.random_scene(rng, two_objects=1) for _ in range(400)) if len(scene.items) == 2]
    assert len(pairs) > 300
    for pair in pairs:
        black = [shapes.Item(item.shape, "black", item.size, item.position) for item in pair]
        first, second = ((shapes.draw([shapes.Scene((item,), "white", 5)]) < 0.5).any(1) for item in black)
        assert not (first & second).any()


def test_a_full_caption_names_every_attribute():
    rng = random.Random(1)
    for _ in range(50):
        scene = shapes.random_scene(rng)
        words = shapes.caption(scene, rng, full=True)
        for item in scene.items:
            assert item.colour in words and item.shape in words and item.size in words
            assert item.position.replace("center", "middle") in words or item.position in words
        assert f"{scene.background} background" in words
