"""The judge: a small network that reads a picture of the bundled data set back into words, and gives features for metrics.

It looks at the nine places where an object can be, and says for each what is there, if anything; so it reads one object
or several alike. Trained by ``tools.train_judge``; its own accuracy is in docs/models.md.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

FILE = Path(__file__).parents[1] / "models" / "shapes-judge.safetensors"
SIDE = 128  # pictures are brought to this size


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width),
        )  # fmt: skip

    def forward(self, x):
        return F.gelu(x + self.layers(x))


def shrink(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.GroupNorm(8, outputs), nn.GELU())


class Judge(nn.Module):
    """``labels``: the words for "shapes", "colours" and "sizes" in order, and "places": name to (x, y) as shares of a side."""

    def __init__(self, labels, width=64):
        super().__init__()
        self.labels = labels
        counts = [1 + len(labels["shapes"]), len(labels["colours"]), len(labels["sizes"])]  # shape 0: nothing there
        self.counts = counts
        self.body = nn.Sequential(
            shrink(3, width // 2), shrink(width // 2, width), Residual(width), Residual(width),
            shrink(width, 2 * width), Residual(2 * width), Residual(2 * width),
        )  # fmt: skip
        self.top = nn.Sequential(shrink(2 * width, 2 * width), Residual(2 * width), Residual(2 * width))
        self.object = nn.Linear(4 * width, sum(counts))
        self.background = nn.Linear(2 * width, len(labels["colours"]))
        self.register_buffer("places", torch.tensor(list(labels["places"].values())) * 2 - 1, persistent=False)

    def forward(self, pictures):
        """Pictures (B, 3, H, W) in [0, 1] to logits: objects, a list of (B, places, n) for shape (0: none), colour and
        size; background (B, colours); and features (B, 128)."""
        pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True) if pictures.shape[-1] != SIDE else pictures
        fine = self.body(2 * pictures - 1)
        coarse = self.top(fine)
        grid = self.places[None, :, None].expand(len(pictures), -1, -1, -1)  # (B, places, 1, 2)
        at_places = [F.grid_sample(level, grid.to(level), align_corners=False)[..., 0].mT for level in (fine, coarse)]
        features = coarse.mean((2, 3))
        return self.object(torch.cat(at_places, -1)).split(self.counts, -1), self.background(features), features

    @torch.no_grad()
    def _judge(self, images):
        check_images(images)
        return self(images[..., :3].movedim(-1, 1).float().to(self.places.device))

    def features(self, images):
        """Images (B, H, W, 3) in [0, 1] to (B, 128) float32. Raises ValueError for what is no IMAGE."""
        return self._judge(images)[2]

    def probabilities(self, images):
        """Images (B, H, W, 3) to (B, shapes x colours): which object the picture shows, its weight shared among several."""
        (shape, colour, _), _, _ = self._judge(images)
        shape, colour = shape.softmax(-1)[..., 1:], colour.softmax(-1)
        joint = (shape[..., :, None] * colour[..., None, :]).sum(1).flatten(1)
        return joint / joint.sum(1, keepdim=True)

    def read(self, images):
        """Images (B, H, W, 3) to one dict each: "background", and "objects", a list of dicts of shape, colour, size, position."""
        objects, background, _ = self._judge(images)
        shape, colour, size = (logits.argmax(-1).tolist() for logits in objects)
        return [
            {
                "background": self.labels["colours"][background[i].argmax()],
                "objects": [
                    {
                        "shape": self.labels["shapes"][shape[i][j] - 1],
                        "colour": self.labels["colours"][colour[i][j]],
                        "size": self.labels["sizes"][size[i][j]],
                        "position": place,
                    }
                    for j, place in enumerate(self.labels["places"])
                    if shape[i][j]
                ],
            }
            for i in range(len(images))
        ]


def check_images(images):
    if images.ndim != 4 or images.shape[-1] < 3:
        raise ValueError(f"images: got shape {tuple(images.shape)}, but the judge reads IMAGE batches (B, H, W, 3) in [0, 1].")


def load_judge(path=FILE):
    """The trained judge, in float32 on the CPU. Raises ValueError where its file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            judge = Judge(json.loads(file.metadata()["labels"]))
            judge.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118 (no iterator)
    except Exception as reason:
        raise ValueError(f"{path} is missing or damaged ({reason}). Restore it with: git checkout models") from reason
    return judge.eval().requires_grad_(False)
