"""Trains the judge, which reads pictures of the data set back: ``python -m tools.host --run -m tools.train_judge``.

It learns from fresh pictures, each blurred, shifted in colour and made noisy by chance, so that it reads what a decoder
draws as well as what the renderer does.
"""

import argparse
import functools
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from comfyui_distillery.measure.judge import FILE, Judge

from . import ROOT, shapes
from .server import end_on_sigterm
from .training import as_kernels, as_matrices, join_workers, save, train, workers

LABELS = {
    "shapes": shapes.KINDS, "colours": list(shapes.COLOURS), "sizes": list(shapes.SIZES), "places": shapes.POSITIONS,
}  # fmt: skip


def targets(scenes):
    """What is to be read: background (B,), and (3, B, places) for shape (0: none), colour and size (-1: no object)."""
    places = list(shapes.POSITIONS)
    objects = torch.full((3, len(scenes), len(places)), -1)
    objects[0] = 0
    for row, scene in enumerate(scenes):
        for item in scene.items:
            words = (1 + shapes.KINDS.index(item.shape), LABELS["colours"].index(item.colour), LABELS["sizes"].index(item.size))
            objects[:, row, places.index(item.position)] = torch.tensor(words)
    return torch.tensor([LABELS["colours"].index(scene.background) for scene in scenes]), objects


def weather(pictures, generator):
    """Blur by up to two pixels, shift each colour channel by up to 0.03, add noise of up to 0.04, each by chance."""
    count = len(pictures)

    def chance(*shape):
        return torch.rand(count, *shape, generator=generator)

    small = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    pictures = torch.lerp(pictures, small, chance(1, 1, 1) * (chance(1, 1, 1) < 0.5))
    pictures = pictures + 0.03 * (2 * chance(3, 1, 1) - 1)
    noise = torch.randn(pictures.shape, generator=generator) * 0.04 * chance(1, 1, 1)
    return (pictures + noise).clamp(0, 1)


def loss(judge, batch, step):
    rng, generator = random.Random(f"judge {step}"), torch.Generator().manual_seed(step)
    scenes = [shapes.random_scene(rng) for _ in range(batch)]
    background, wanted = targets(scenes)
    with torch.autocast("cpu", torch.bfloat16):
        objects, ground, _ = judge(weather(shapes.draw(scenes), generator).contiguous(memory_format=torch.channels_last))
    total = F.cross_entropy(ground.float(), background)
    for logits, words in zip(objects, wanted):
        total = total + F.cross_entropy(logits.float().flatten(0, 1), words.flatten(), ignore_index=-1)
    return total


def right(scene, read, attributes=("shape", "colour", "position")):
    """Whether the judge read the scene's background and exactly its objects, in these attributes."""
    asked = sorted(tuple(getattr(item, a) for a in attributes) for item in scene.items)
    return read["background"] == scene.background and asked == sorted(tuple(o[a] for a in attributes) for o in read["objects"])


def accuracy(judge, count=4000, batch=50):
    """Share of fresh pictures, as drawn, read wholly right: size included, and not."""
    rng, found = random.Random("judge test"), torch.zeros(2)
    for _ in range(count // batch):
        scenes = [shapes.random_scene(rng) for _ in range(batch)]
        for scene, read in zip(scenes, judge.read(shapes.draw(scenes).movedim(1, -1))):
            found += torch.tensor([right(scene, read, ("shape", "colour", "position", "size")), right(scene, read)])
    return (found / count).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    end_on_sigterm()
    join_workers()
    torch.manual_seed(0)
    judge = Judge(LABELS).to(memory_format=torch.channels_last)
    as_matrices(judge)
    folder = Path(ROOT) / ".cache" / "train" / "judge"
    seconds = train(judge, functools.partial(loss, judge, options.batch), options.steps, folder, peak=3e-3, muon=True)
    as_kernels(judge)
    if workers()[0] > 0:
        return
    judge.eval()
    whole, named = accuracy(judge)
    card = {"steps": options.steps, "batch": options.batch * workers()[1], "seconds": round(seconds), "right": named, "with size": whole}
    weights = {key: value.half() for key, value in judge.state_dict().items()}
    save(FILE, weights, {"labels": json.dumps(LABELS), "training": json.dumps(card)})
    print(card)


if __name__ == "__main__":
    main()
