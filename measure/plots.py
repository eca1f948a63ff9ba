"""Figures as pictures: matplotlib drawn off screen, without the global state of pyplot."""

import numpy as np
import torch


class NoMatplotlib(ValueError):
    """matplotlib, which ComfyUI does not bring, is missing: there are numbers to show and no picture of them."""


def new_figure(width, height, rows=1, columns=1):
    """A matplotlib Figure of ``width`` x ``height`` pixels and its axes (rows, columns), with a light grid.

    Raises NoMatplotlib, a ValueError, where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoMatplotlib("matplotlib: not installed, and plots need it. Install it with: pip install matplotlib") from None
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def to_image(figure):
    """The figure as an IMAGE: (1, H, W, 3) float32 in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255
    return torch.from_numpy(pixels)[None]
