"""Pictures of one prompt in fewer and fewer steps beside the teacher's, each with what it took and how far it is off."""

from dataclasses import dataclass

import torch

from .pictures import check_pair, compare_latents, fidelity
from .plots import new_figure, to_image

SIDE, LINE = 220, 46  # pixels of one picture, and of a title above it


@dataclass(frozen=True)
class Sampled:
    """What one MODEL made in so many steps: latents and pictures (B, H, W, 3) of the same noises.

    by: whose, such as "student". seconds: of all the B together. evaluations: of the network for each picture.
    """

    by: str
    steps: int
    cfg: float
    evaluations: float
    seconds: float
    latents: torch.Tensor
    pictures: torch.Tensor


def table(teacher, others):
    """A row of numbers for each Sampled, the teacher's first, ready for JSON.

    latent_error: |latent - teacher's| / |teacher's|. psnr and sharpness_ratio: of the pictures, as
    ``pictures.compare``. Means over the batch. ValueError for different shapes, NaN and infinities.
    """
    return [_row(teacher, sampled) for sampled in (teacher, *others)]


def _row(teacher, sampled):
    check_pair(teacher.pictures, sampled.pictures)
    near = [_near(*pair) for pair in zip(teacher.pictures, sampled.pictures)]
    far = compare_latents(teacher.latents, sampled.latents)
    return {
        "by": sampled.by, "steps": sampled.steps, "cfg": sampled.cfg, "evaluations": sampled.evaluations, "seconds": sampled.seconds,
        "latent_error": far["latent_relative_error"]["mean"],
        **{name: sum(item[name] for item in near) / len(near) for name in ("psnr", "sharpness_ratio")},
    }  # fmt: skip


def _near(*pair):
    a, b = (image[None, ..., :3].movedim(-1, 1).double().clamp(0, 1) for image in pair)
    return {name: float(value) for name, value in fidelity(a, b).items()}


def in_words(rows):
    """The table as text, in columns."""
    names = {"by": "", "steps": "steps", "cfg": "CFG", "evaluations": "evaluations", "seconds": "seconds",
             "latent_error": "latent error", "psnr": "PSNR", "sharpness_ratio": "sharpness"}  # fmt: skip
    formats = {"by": "", "steps": "d", "cfg": "g", "evaluations": "g", "seconds": ".2f", "latent_error": ".3f", "psnr": ".1f",
               "sharpness_ratio": ".2f"}  # fmt: skip
    lines = [[*names.values()], *([format(row[name], formats[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    aligned = ((line[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(line[1:], widths[1:]))) for line in lines)
    return "\n".join("  ".join(words).rstrip() for words in aligned)


def draw(teacher, others, rows=2):
    """``plot`` as an IMAGE (1, H, W, 3)."""
    return to_image(plot(teacher, others, rows))


def plot(teacher, others, rows=2):
    """A matplotlib Figure: for each of at most ``rows`` items of the batch, a line of pictures for each maker among ``others``.

    The teacher's picture stands first in every line. Titles give steps, evaluations, seconds and the error of the latent. Pictures
    of video are the frames of the batch, which count as items. ValueError without matplotlib.
    """
    numbers = table(teacher, others)
    makers = list(dict.fromkeys(sampled.by for sampled in others))
    lines = [[(i, each) for i, each in enumerate(others, 1) if each.by == maker] for maker in makers]
    items = range(min(rows, len(teacher.pictures)))
    columns = 1 + max(len(line) for line in lines)
    height, width = teacher.pictures.shape[1:3]
    cell = [SIDE * length // max(height, width) for length in (width, height)]
    count = len(items) * len(lines)
    figure, axes = new_figure(columns * (cell[0] + 8), count * (cell[1] + LINE), count, columns)
    for place, (item, (maker, line)) in enumerate((item, named) for item in items for named in zip(makers, lines)):
        shown = [(0, teacher), *line]
        for axis, (number, sampled) in zip(axes[place], shown):
            axis.imshow(sampled.pictures[item, ..., :3].float().clamp(0, 1).cpu().numpy(), aspect="auto")
            axis.set_title(_title(sampled, numbers[number]), fontsize=8)
        axes[place, 0].set_ylabel(maker if len(items) == 1 else f"{maker}, item {item + 1}", fontsize=9)
        for axis in axes[place]:
            axis.set(xticks=[], yticks=[])
        for axis in axes[place, len(shown) :]:
            axis.set_axis_off()
    return figure


def _title(sampled, row):
    steps = "1 step" if sampled.steps == 1 else f"{sampled.steps} steps"
    first = f"{sampled.by}, {steps}, CFG {sampled.cfg:g}"
    error = f", error {row['latent_error']:.2f}" if row["latent_error"] else ""
    return f"{first}\n{sampled.evaluations:g} evaluations, {sampled.seconds:.2f} s{error}"
