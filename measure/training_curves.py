"""The picture of a training run: loss, gradient and learning rate against the step, and what has which share of them."""

import math

from .plots import new_figure, to_image

WIDTH, PANEL = 900, 170  # pixels
HALF_LIFE = 0.02  # of the smoothing, as a share of the run; at least 2 steps
DECADES = 1  # losses and gradients that span more are drawn on a logarithmic axis
SHARES = {"gradient_shares": "share of gradient", "loss_parts": "share of loss"}  # of a row of the history: what it is called


def draw(history, best=None):
    """``plot`` as an IMAGE (1, H, W, 3)."""
    return to_image(plot(history, best))


def plot(history, best=None):
    """A matplotlib Figure with one panel each for loss, gradient norm and learning rate, and for the shares that there are.

    history: a row for each step, {"step", "loss", "gradient", "rate", "skipped"}; loss and gradient None where they were not finite.
    The loss is drawn raw and smoothed. "gradient_shares" and "loss_parts" of a row, {name: number} or None, make two more panels:
    ``shares`` of the smoothed numbers. best: {"step", "score"} of the state that scored best on held-out prompts, a green line; None
    draws none. Steps that were skipped are red ticks at the foot of every panel. ValueError for an empty history, or without
    matplotlib.
    """
    if not history:
        raise ValueError("history is empty: no step has been made yet.")
    divided = {name: found for name in SHARES if (found := shares(history, name))}
    figure, axes = new_figure(WIDTH, (3 + len(divided)) * PANEL, rows=3 + len(divided))
    steps = [row["step"] for row in history]
    losses, gradients = ([row[name] for row in history] for name in ("loss", "gradient"))
    for axis, values, name in zip(axes[:3, 0], (losses, gradients, [row["rate"] for row in history]), ("loss", "gradient", "rate")):
        faint = name == "loss" and len(history) > 2
        axis.plot(steps, _gaps(values), color="tab:blue", linewidth=0.8, alpha=0.35 if faint else 1.0, label=name)
        if faint:
            axis.plot(steps, _gaps(smoothed(values)), color="tab:blue", linewidth=1.8, label="smoothed")
        axis.set_ylabel({"loss": "loss", "gradient": "gradient norm", "rate": "learning rate"}[name])
        axis.set_yscale("log" if name != "rate" and is_wide(values) else "linear")
    for axis, (name, found) in zip(axes[3:, 0], divided.items()):
        for part, values in found.items():
            axis.plot(steps, _gaps(values), linewidth=1.4, label=part)
        axis.set_ylabel(SHARES[name])
        axis.set_ylim(0, 1)
    for axis in axes[:, 0]:
        _mark(axis, history, best)
        axis.legend(loc="upper right", ncols=6, fontsize=8)
    axes[-1, 0].set_xlabel("step")
    return figure


def shares(history, name):
    """{part: its share at each step}: of the numbers under ``name``, smoothed, over the sum of all, smoothed alike.

    None before the first number, and where all are 0. Empty where there are fewer than two parts.
    """
    rows = [row.get(name) or {} for row in history]
    parts = list(dict.fromkeys(part for row in rows for part in row))
    if len(parts) < 2:
        return {}
    each = {part: smoothed([row.get(part) for row in rows]) for part in parts}
    sums = [None if None in values else sum(values) for values in zip(*each.values())]
    return {part: [value / whole if whole else None for value, whole in zip(values, sums)] for part, values in each.items()}


def smoothed(values, half_life=None):
    """Each value averaged with those before it, whose weight halves every ``half_life`` steps; None counts for nothing.

    half_life: in steps; 2 % of the run unless given, at least 2. None where nothing has counted yet.
    """
    decay = 0.5 ** (1 / (half_life or max(HALF_LIFE * len(values), 2)))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = decay * total, decay * weight
        if value is not None:
            total, weight = total + value, weight + 1
        result.append(total / weight if weight else None)
    return result


def is_wide(values):
    """Whether these numbers are all above 0 and span more than a power of ten."""
    known = [value for value in values if value is not None]
    return bool(known) and min(known) > 0 and max(known) > min(known) * 10**DECADES


def _mark(axis, history, best):
    skipped = [row["step"] for row in history if row["skipped"]]
    if skipped:
        foot = axis.get_xaxis_transform()  # steps across, and 0 to 1 of the panel's height
        axis.plot(skipped, [0.03] * len(skipped), "|", color="tab:red", markersize=9, transform=foot, label="skipped")
    if best is not None:
        axis.axvline(best["step"], color="tab:green", linewidth=1.2, label=f"best, {best['score']:.4g}")


def _gaps(values):
    return [math.nan if value is None else value for value in values]
