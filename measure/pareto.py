"""A sweep: the same sampling over a grid of settings; what each setting cost and how far it fell from a reference."""

import math
import statistics
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .pictures import compare, compare_latents
from .plots import new_figure, to_image

COSTS = ("seconds", "evaluations")
RELATIVE = "relative error"
ERRORS = {  # name: the metric of measure.pictures it is made of, and how; 0 is equality. RELATIVE suits latents, too.
    "1 - SSIM": ("ssim", lambda ssim: 1 - ssim),
    "mean difference": ("mean_difference", lambda difference: difference),
    "delta E": ("delta_e", lambda delta: delta),
}
LABEL_LINE, GAP = 16, 4  # pixels, on a contact sheet


@dataclass
class Point:
    """One setting. seconds has one number per run; result is what the first run made, (B, ...)."""

    settings: dict
    result: torch.Tensor
    evaluations: int
    calls: int
    seconds: list[float] = field(default_factory=list)

    @property
    def label(self):
        """Such as "steps 8, order 2": inputs without the node they belong to."""
        return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in self.settings.items())


@dataclass
class Sweep:
    """All settings of a grid in order, the last input varying fastest; pictures tells images from latents."""

    reference: torch.Tensor
    pictures: bool
    points: list[Point] = field(default_factory=list)


def non_dominated(costs, errors):
    """Which points no other point beats: [bool]. One beats another that is not better in either and worse in one.

    Pareto optimality for two numbers to be kept small. Points that are equal in both do not beat each other.
    """
    points = list(zip(costs, errors))
    return [not any(a <= cost and b <= error and (a, b) != (cost, error) for a, b in points) for cost, error in points]


def error_of(name, reference, candidate, pictures):
    """The error of a batch, the mean over its items: ``RELATIVE`` or a key of ``ERRORS``, which are for pictures alone.

    RELATIVE is |candidate - reference| / |reference|, Euclidean norms over the item. For the others and what is raised
    for shapes that differ or values that are not finite: ``measure.pictures``.
    """
    if name == RELATIVE:
        return compare_latents(reference, candidate)["latent_relative_error"]["mean"]
    if not pictures:
        raise ValueError(
            f"error is {name!r}, which is for pictures, and this sweep holds latents: choose {RELATIVE!r}, or connect what "
            "VAE Decode makes of the latents to Sweep."
        )
    metric, convert = ERRORS[name]
    return convert(compare(reference, candidate)[metric]["mean"])


def rows_of(sweep, error):
    """One dict a point, ready for JSON: settings, evaluations, calls, seconds (median), all_seconds, error, non_dominated.

    non_dominated says for each of ``COSTS`` whether the point is on that front.
    """
    rows = [
        {
            "label": point.label,
            "settings": point.settings,
            "evaluations": point.evaluations,
            "calls": point.calls,
            "seconds": statistics.median(point.seconds),
            "all_seconds": point.seconds,
            "error": error_of(error, sweep.reference, point.result, sweep.pictures),
        }
        for point in sweep.points
    ]
    fronts = {cost: non_dominated([row[cost] for row in rows], [row["error"] for row in rows]) for cost in COSTS}
    return [row | {"non_dominated": {cost: fronts[cost][i] for cost in COSTS}} for i, row in enumerate(rows)]


def table(rows, error):
    """The rows as text in columns; the last names the costs for which a point is not dominated."""
    names = list(rows[0]["settings"])
    lines = [[*names, "evaluations", "seconds", error, "non-dominated by"]]
    for row in rows:
        fronts = " and ".join(cost for cost in COSTS if row["non_dominated"][cost])
        numbers = [str(row["evaluations"]), f"{row['seconds']:.3f}", f"{row['error']:.4g}"]
        lines.append([*(str(row["settings"][name]) for name in names), *numbers, fronts or "-"])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def draw(rows, error):
    """Error against each cost as an IMAGE (1, 420, 1100, 3): filled, joined and labelled where not dominated."""
    figure, axes = new_figure(1100, 420, columns=len(COSTS))
    for axis, cost in zip(axes[0], COSTS):
        axis.scatter([row[cost] for row in rows], [row["error"] for row in rows], facecolors="none", edgecolors="tab:gray")
        front = sorted((row for row in rows if row["non_dominated"][cost]), key=lambda row: row[cost])
        axis.plot([row[cost] for row in front], [row["error"] for row in front], "o-", color="tab:blue", label="non-dominated")
        for row in front:
            place = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 8}
            axis.annotate(row["label"], (row[cost], row["error"]), **place)
        axis.set(xlabel="model evaluations" if cost == "evaluations" else cost, ylabel=error)
        axis.set_yscale("log" if all(row["error"] > 0 for row in rows) else "linear")
        axis.margins(x=0.15)
        axis.legend(loc="upper right")
    return to_image(figure)


def contact_sheet(sweep, rows):
    """The reference and the first picture of every point, in order and labelled, as one IMAGE (1, H, W, 3).

    With two varied inputs a line of the sheet is one value of the first; else lines are filled to about a square.
    """
    pictures = [sweep.reference[0], *(point.result[0] for point in sweep.points)]
    labels = [["reference", ""], *([row["label"], f"error {row['error']:.4g}"] for row in rows)]
    font = ImageFont.load_default(12)
    width = GAP + max(pictures[0].shape[1], *(math.ceil(font.getlength(line)) for label in labels for line in label))
    height = GAP + pictures[0].shape[0] + LABEL_LINE * 2
    places = sheet_places(sweep.points)
    size = width * (1 + max(x for x, _ in places)), height * (1 + max(y for _, y in places))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for (x, y), picture, label in zip(places, pictures, labels):
        x, y = x * width, y * height
        for i, line in enumerate(label):
            pen.text((x, y + i * LABEL_LINE), line, fill="black", font=font)
        pixels = (picture[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
        sheet.paste(Image.fromarray(pixels), (x, y + 2 * LABEL_LINE))
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def sheet_places(points):
    """(column, line) of the reference and of each point on a contact sheet."""
    if len(points[0].settings) == 1:
        columns = math.ceil(math.sqrt(len(points) + 1))
        return [(i % columns, i // columns) for i in range(len(points) + 1)]
    first = next(iter(points[0].settings))
    columns = sum(point.settings[first] == points[0].settings[first] for point in points)
    return [(0, 0), *((i % columns, 1 + i // columns) for i in range(len(points)))]
