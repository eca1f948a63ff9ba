"""The figures of models/README.md: colours and places of 60 fresh pictures, read off the pixels.

``python3 -m tools.host --run -m tools.check_demo``
"""

import asyncio
import json
import random

import torch

from . import ROOT, shapes
from .inprocess import import_comfyui

NEAR = (-0.04, 0, 0.04)


def nearest_colour(image, x, y):
    """The palette colour nearest to the mean around a point given as shares of the side; image (H, W, 3)."""
    row, column = round(y * len(image)), round(x * len(image))
    mean = image[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3].mean((0, 1))
    return min(shapes.COLOURS, key=lambda name: (mean - torch.tensor(shapes.COLOURS[name])).square().sum())


def is_at_its_place(image, item):
    """Whether the item's colour is found at its place, or, for a ring, on the ring above it."""
    x, y = shapes.POSITIONS[item.position]
    lift = 0.675 * shapes.SIZES[item.size] if item.shape == "ring" else 0
    points = [(x, y - lift), *((x + dx, y + dy) for dx in NEAR for dy in NEAR)]
    return any(nearest_colour(image, *point) == item.colour for point in points)


def background_of(image):
    corners = [nearest_colour(image, x, y) for x in (0.03, 0.97) for y in (0.03, 0.97)]
    return max(set(corners), key=corners.count)


@torch.inference_mode()
def main(count=60):
    import_comfyui()
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    asyncio.run(nodes.load_custom_node(str(ROOT)))
    classes = nodes.NODE_CLASS_MAPPINGS
    model, clip, vae = classes["Distillery_LoadDemoModel"].EXECUTE_NORMALIZED(name="shapes-dit").args
    encode, sample = classes["CLIPTextEncode"]().encode, classes["KSampler"]().sample
    (negative,) = encode(clip, "")
    rng, backgrounds, places = random.Random(2024), 0, {size: [] for size in shapes.SIZES}
    for seed in range(count):
        scene = shapes.random_scene(rng, two_objects=0)
        (positive,) = encode(clip, shapes.caption(scene, rng, full=True))
        latent = {"samples": torch.zeros(1, 16, 16, 16)}
        (sampled,) = sample(model, seed, 20, 4.0, "euler", "simple", positive, negative, latent)
        image = vae.decode(sampled["samples"])[0]
        backgrounds += background_of(image) == scene.background
        places[scene.items[0].size].append(is_at_its_place(image, scene.items[0]))
    by_size = {size: f"{sum(found)} of {len(found)}" for size, found in places.items()}
    print(json.dumps({"pictures": count, "background": backgrounds, "place": sum(map(sum, places.values())), **by_size}))


if __name__ == "__main__":
    main()
