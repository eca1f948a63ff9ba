"""Pictures of benchmark rows: which columns to draw is all that a benchmark says."""

from dataclasses import dataclass

from comfyui_distillery.measure.plots import new_figure, to_image
from PIL import Image

WIDTH, PANEL, LINE = 1100, 520, 34  # pixels
MARKERS = "os^D"  # another for every ten lines: after ten, matplotlib's colours begin again


def different(rows, name):
    return list(dict.fromkeys(row[name] for row in rows))


@dataclass(frozen=True)
class Lines:
    """Column y, logarithmic, against column x: a line for each value of ``line``, a panel for each of ``panel``.

    Lines whose name begins with ``rivals`` are dashed.
    """

    x: str
    y: str
    line: str
    panel: str
    rivals: str = "core "

    def draw(self, rows):
        panels = different(rows, self.panel)
        figure, axes = new_figure(WIDTH, PANEL * len(panels), rows=len(panels))
        for axis, panel in zip(axes[:, 0], panels):
            for i, line in enumerate(different(rows, self.line)):
                drawn = [row for row in rows if (row[self.panel], row[self.line]) == (panel, line)]
                style = {"linestyle": "--" if line.startswith(self.rivals) else "-", "marker": MARKERS[i // 10 % len(MARKERS)]}
                axis.plot([row[self.x] for row in drawn], [row[self.y] for row in drawn], label=line, **style)
            axis.set(title=panel, xlabel=self.x, ylabel=self.y, yscale="log")
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return to_image(figure)


@dataclass(frozen=True)
class Ratios:
    """One point a row at column ``value``, with a bar from ``low`` to ``high``; names are the columns that name the row.

    ``goal`` is a line to stay left of.
    """

    names: tuple[str, ...]
    value: str
    low: str
    high: str
    goal: float | None = None

    def draw(self, rows):
        figure, axes = new_figure(WIDTH, 4 * LINE + LINE * len(rows))
        axis = axes[0, 0]
        values = [row[self.value] for row in rows]
        spread = [[v - row[self.low] for v, row in zip(values, rows)], [row[self.high] - v for v, row in zip(values, rows)]]
        axis.errorbar(values, range(len(rows)), xerr=spread, fmt="o", capsize=4)
        if self.goal is not None:
            axis.axvline(self.goal, color="tab:green", linestyle="--", label=f"goal {self.goal:g}")
            axis.legend()
        axis.set_yticks(range(len(rows)), [", ".join(str(row[name]) for name in self.names) for row in rows])
        axis.set(xlabel=f"{self.value} (bar: {self.low} to {self.high})", ylim=(len(rows) - 0.5, -0.5))
        return to_image(figure)


def save(image, file):
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(file)
