"""The "shapes" data set: captioned scenes of coloured shapes, drawn from signed distance functions.

Scenes are numbers, so they can be drawn on any device, at any size, without end, and a caption can be checked exactly.
Distances follow Inigo Quilez, "2D distance functions", https://iquilezles.org/articles/distfunctions2d (formulas only).
"""

import math
import random
from dataclasses import dataclass

import torch

COLOURS = {
    "red": (0.86, 0.13, 0.15), "orange": (0.97, 0.55, 0.10), "yellow": (0.98, 0.87, 0.18), "green": (0.16, 0.65, 0.27),
    "cyan": (0.20, 0.80, 0.85), "blue": (0.14, 0.30, 0.84), "purple": (0.52, 0.20, 0.72), "pink": (0.97, 0.55, 0.76),
    "white": (0.96, 0.96, 0.96), "black": (0.07, 0.07, 0.08),
}  # fmt: skip
SIZES = {"small": 0.12, "medium": 0.165, "large": 0.215}  # radius, as a share of the picture's side
POSITIONS = {
    f"{row} {column}".strip(): (x, y)
    for row, y in (("top", 0.25), ("", 0.5), ("bottom", 0.75))
    for column, x in (("left", 0.25), ("", 0.5), ("right", 0.75))
}
POSITIONS["center"] = POSITIONS.pop("")


def circle(p, r):
    return p.norm(dim=-1) - r


def ring(p, r):
    return (p.norm(dim=-1) - 0.75 * r).abs() - 0.25 * r


def box(p, half_x, half_y):
    q = p.abs() - torch.stack((half_x, half_y), -1)
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)


def square(p, r):
    return box(p, 0.85 * r, 0.85 * r)


def cross(p, r):
    return torch.minimum(box(p, r, 0.33 * r), box(p, 0.33 * r, r))


def polygon(p, corners):
    """Signed distance to a closed polygon; ``corners`` (B, n, 2) broadcast against the points ``p`` (B, H, W, 2)."""
    corners = corners[:, None, None]
    distance, inside = None, False
    for i in range(corners.shape[-2]):
        a, b = corners[..., i - 1, :], corners[..., i, :]
        edge, w = b - a, p - a
        along = ((w * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0, 1)
        d = (w - edge * along[..., None]).norm(dim=-1)
        distance = d if distance is None else torch.minimum(distance, d)
        crosses = (a[..., 1] > p[..., 1]) != (b[..., 1] > p[..., 1])
        height = torch.where(edge[..., 1] == 0, torch.ones_like(edge[..., 1]), edge[..., 1])  # flat edges never cross
        inside = inside ^ (crosses & (p[..., 0] < a[..., 0] + edge[..., 0] * w[..., 1] / height))
    return torch.where(inside, -distance, distance)


def spokes(r, radii):
    """Corners at equal angles, the first straight up, at the given shares of the radius ``r`` (B, 1, 1)."""
    angles = torch.arange(len(radii), device=r.device) * (2 * math.pi / len(radii))
    directions = torch.stack((angles.sin(), -angles.cos()), -1) * torch.tensor(radii, device=r.device)[:, None]
    return r.reshape(-1, 1, 1) * directions


def triangle(p, r):
    return polygon(p, spokes(r, [1.05] * 3))


def star(p, r):
    return polygon(p, spokes(r, [1.1, 0.46] * 5))


def heart(p, r):
    x, y = p[..., 0].abs() / (1.55 * r), 0.55 - p[..., 1] / (1.55 * r)
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    tip = (0.5 * (x + y).clamp_min(0))[..., None]
    side = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - tip[..., 0], y - tip[..., 0]))
    return 1.55 * r * torch.where(x + y > 1, lobe, side * (x - y).sign())


SHAPES = {"circle": circle, "square": square, "triangle": triangle, "star": star, "ring": ring, "cross": cross, "heart": heart}
KINDS = list(SHAPES)


@dataclass(frozen=True)
class Item:
    shape: str
    colour: str
    size: str
    position: str


@dataclass(frozen=True)
class Scene:
    """What a caption may say, and the jitter it does not: everything needed to draw the scene again."""

    items: tuple[Item, ...]
    background: str
    seed: int


def radius(item):
    return SIZES[item.size]


def apart(a, b):
    (ax, ay), (bx, by) = POSITIONS[a.position], POSITIONS[b.position]
    return math.hypot(ax - bx, ay - by) > 1.1 * (radius(a) + radius(b)) + 0.06


def random_item(rng, background):
    colour = rng.choice([c for c in COLOURS if c != background])
    return Item(rng.choice(KINDS), colour, rng.choice(list(SIZES)), rng.choice(list(POSITIONS)))


def random_scene(rng, two_objects=0.35):
    """A scene from ``rng`` (random.Random): one object, or two that do not touch with probability ``two_objects``."""
    background = rng.choice(list(COLOURS))
    items = [random_item(rng, background)]
    if rng.random() < two_objects:
        seconds = (random_item(rng, background) for _ in range(20))  # a large shape in the center leaves no room
        items += [second for second in seconds if apart(items[0], second)][:1]
    return Scene(tuple(items), background, rng.getrandbits(32))


def article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def phrase(item, rng, full):
    """An object in words; what is left out was left to chance, so a prompt need not say everything."""
    size = f"{item.size} " if full or rng.random() < 0.8 else ""
    place = item.position if item.position != "center" or rng.random() < 0.5 else "middle"
    where = {"top": " at the ", "bottom": " at the ", "left": " on the ", "right": " on the "}.get(place, " in the ") + place
    return article(f"{size}{item.colour} {item.shape}") + (where if full or rng.random() < 0.85 else "")


def caption(scene, rng, full=False):
    """One of many captions of the scene; ``full`` names every attribute, always in the same words."""
    words = " and ".join(phrase(item, rng, full) for item in scene.items)
    if full or rng.random() < 0.9:
        words += " on " + article(f"{scene.background} background")
    return words


def vocabulary():
    """Every word a caption can hold, sorted; what the text encoder's tokenizer knows."""
    words = {"a", "an", "and", "at", "in", "on", "the", "background", "center", "middle"}
    words |= set(COLOURS) | set(SIZES) | set(SHAPES)
    return sorted(words.union(*(place.split() for place in POSITIONS)))


def draw(scenes, resolution=128, device="cpu"):
    """Pictures of the scenes: (B, 3, resolution, resolution) float32 in [0, 1]."""
    rngs = [random.Random(scene.seed) for scene in scenes]
    grid = (torch.arange(resolution, device=device) + 0.5) / resolution
    pixels = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)  # (H, W, 2), y down

    def tint(name, rng):
        return [min(max(c + rng.uniform(-0.04, 0.04), 0), 1) for c in COLOURS[name]]

    base = torch.tensor([tint(s.background, rng) for s, rng in zip(scenes, rngs)], device=device)
    light = torch.tensor([[rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)] for rng in rngs], device=device)
    shade = 1 + ((pixels - 0.5) * light[:, None, None]).sum(-1)
    pictures = (base[:, :, None, None] * shade[:, None]).clamp(0, 1)

    objects = []
    for row, (scene, rng) in enumerate(zip(scenes, rngs)):
        for item in scene.items:
            x, y = POSITIONS[item.position]
            place = x + rng.uniform(-0.025, 0.025), y + rng.uniform(-0.025, 0.025)
            r, angle = radius(item) * rng.uniform(0.92, 1.08), rng.uniform(-0.2, 0.2)
            objects.append((item.shape, row, place, r, angle, tint(item.colour, rng)))

    for kind, distance in SHAPES.items():
        chosen = [o[1:] for o in objects if o[0] == kind]
        if not chosen:
            continue
        rows, places, radii, angles, tints = (torch.tensor(v, device=device) for v in zip(*chosen))
        p = pixels - places[:, None, None]
        cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
        p = torch.stack((cos * p[..., 0] + sin * p[..., 1], cos * p[..., 1] - sin * p[..., 0]), -1)
        cover = (0.5 - distance(p, radii[:, None, None]) * resolution).clamp(0, 1)[:, None]
        for i, row in enumerate(rows.tolist()):  # one scene may hold two objects of a kind
            pictures[row] += cover[i] * (tints[i][:, None, None] - pictures[row])
    return pictures
