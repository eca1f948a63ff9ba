"""The figures of the bundled models: fresh captions, pictures by core's own nodes, read back by the judge.

``python3 -m tools.host --run -m tools.check_demo [NAME ...]``: 25 Euler steps at CFG 4, 1,000 captions that name everything.
Writes the first 32 pictures to docs/models/NAME.jpg and prints the figures.
"""

import argparse
import json
import random
from collections import defaultdict

import torch
from PIL import Image
from tqdm import tqdm

from bench.hosted import encode, node_classes, stacked

from . import ROOT, shapes
from .train_judge import right


class Bundled:
    """A bundled model behind core's nodes, one caption per picture of a batch."""

    def __init__(self, name):
        self.nodes = node_classes()
        self.model, self.clip, self.vae = self.nodes["Distillery_LoadDemoModel"].EXECUTE_NORMALIZED(name=name).args
        self.channels = self.model.get_model_object("latent_format").latent_channels

    def encode(self, captions):
        return stacked([encode(self.clip, caption) for caption in captions])

    def pictures(self, captions, seed, steps=25, cfg=4.0, model=None):
        """IMAGE (B, 128, 128, 3) in [0, 1]; model is the bundled one with something added."""
        latent = {"samples": torch.zeros(len(captions), self.channels, 16, 16)}
        conditions = self.encode(captions), self.encode([""] * len(captions))
        (sampled,) = self.nodes["KSampler"]().sample(model or self.model, seed, steps, cfg, "euler", "simple", *conditions, latent)
        return self.nodes["VAEDecode"]().decode(self.vae, sampled)[0]


def shares(scenes, reads):
    """The share of scenes read wholly right, and in each attribute, for one object and for two."""
    counted = defaultdict(list)
    for scene, read in zip(scenes, reads):
        kind = "one object" if len(scene.items) == 1 else "two objects"
        counted[f"{kind}: all right"].append(right(scene, read))
        counted[f"{kind}: background"].append(read["background"] == scene.background)
        found = {o["position"]: o for o in read["objects"]}
        for item in scene.items:
            o = found.get(item.position, {})
            counted[f"{kind}: position"].append(bool(o))
            for attribute in ("shape", "colour", "size"):
                counted[f"{kind}: {attribute}"].append(o.get(attribute) == getattr(item, attribute))
            if kind == "one object":
                counted[f"{kind}: all right, {item.size}"].append(right(scene, read))
    return {key: round(sum(values) / len(values), 4) for key, values in sorted(counted.items())}


def save_grid(images, path, columns=8):
    """Images (B, H, W, 3) in [0, 1] in rows of ``columns``."""
    rows = [torch.cat(list(images[i : i + columns]), 1) for i in range(0, len(images), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((torch.cat(rows) * 255).round().byte().numpy()).save(path, quality=90)


@torch.inference_mode()
def check(name, count, batch=20):
    from comfyui_distillery.measure.distribution import fid, kid, prdc
    from comfyui_distillery.measure.judge import load_judge

    judge, bundled, rng = load_judge(), Bundled(name), random.Random("check")
    scenes = [shapes.random_scene(rng) for _ in range(count)]
    captions = [shapes.caption(scene, rng, full=True) for scene in scenes]
    first, reads, features, decoded, fresh, others = [], [], [], [], [], []
    for i in tqdm(range(0, count, batch), desc=name, mininterval=5):
        pictures = bundled.pictures(captions[i : i + batch], seed=i)
        first += list(pictures[: 32 - len(first)])
        reads += judge.read(pictures)
        features.append(judge.features(pictures))
        drawn = shapes.draw(scenes[i : i + batch]).movedim(1, -1)
        decoded += judge.read(bundled.vae.decode(bundled.vae.encode(drawn)))
        fresh.append(judge.features(shapes.draw([shapes.random_scene(rng) for _ in range(batch)]).movedim(1, -1)))
        others.append(judge.features(shapes.draw([shapes.random_scene(rng) for _ in range(batch)]).movedim(1, -1)))
    save_grid(torch.stack(first), ROOT / "docs" / "models" / f"{name}.jpg")
    features, fresh, others = torch.cat(features), torch.cat(fresh), torch.cat(others)
    figures = shares(scenes, reads)
    figures["the autoencoder's own pictures: all right"] = round(sum(map(right, scenes, decoded)) / count, 4)
    figures["FID to fresh data"], figures["FID of data to data"] = fid(fresh, features), fid(fresh, others)
    figures |= {"KID": kid(fresh, features), **prdc(fresh, features)}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["shapes-dit"])
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    node_classes()
    for name in options.names:
        print(name, json.dumps(check(name, options.count), indent=2))


if __name__ == "__main__":
    main()
