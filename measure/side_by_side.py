"""Two batches beside each other: reference, candidate, and a map of how far they are apart."""

from dataclasses import dataclass

import torch

from .plots import new_figure, to_image

SMALLEST, LARGEST = 256, 640  # pixels of the longer side of one picture on the page
BAR, LINE = 130, 40  # pixels for the colour bar and for a line of titles
SHOWN = 0.01, 0.99  # quantiles of a latent that are drawn black and white


@dataclass(frozen=True)
class Views:
    """What can be drawn of N compared things, each named by a label.

    reference, candidate: (N, H, W, 3) in [0, 1]. difference: (N, H, W), the mean of |candidate - reference| over channels,
    in the units of what was compared.
    """

    reference: torch.Tensor
    candidate: torch.Tensor
    difference: torch.Tensor
    labels: list


def of_images(reference, candidate):
    """Views of two IMAGE batches (B, H, W, 3 or more) of one shape, clipped to [0, 1]; alpha is left out."""
    reference, candidate = (images[..., :3].float().clamp(0, 1) for images in (reference, candidate))
    labels = [f"item {item}" for item in range(1, len(reference) + 1)]
    return Views(reference, candidate, (candidate - reference).abs().mean(-1), labels)


def of_latents(reference, candidate):
    """Views of two latent batches of one shape: (B, C, L), (B, C, H, W) or (B, C, ..., H, W), each frame for itself.

    Colours are the first three channels, or the mean of fewer, by one scale for both: that of the reference. A latent of
    one dimension, as of sound, is drawn as one grey picture, channels from top to bottom.
    """
    if reference.ndim == 3:
        reference, candidate = reference[:, None], candidate[:, None]
    items, frames = len(reference), reference[0, 0, ..., 0, 0].numel()
    reference, candidate = (latent.float().movedim(1, -3).flatten(0, -4) for latent in (reference, candidate))
    drawn = [latent[:, :3] if latent.shape[1] >= 3 else latent.mean(1, keepdim=True) for latent in (reference, candidate)]
    low, high = (torch.quantile(_sample(drawn[0]), share) for share in SHOWN)
    drawn = [((latent - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) for latent in drawn]
    drawn = [latent.expand(-1, 3, -1, -1).movedim(1, -1) for latent in drawn]
    labels = [f"item {item}" if frames == 1 else f"item {item}, frame {frame}"
              for item in range(1, items + 1) for frame in range(1, frames + 1)]  # fmt: skip
    return Views(drawn[0], drawn[1], (candidate - reference).abs().mean(1), labels)


def draw(views, rows=4, gain=0.0):
    """``plot`` as an IMAGE (1, H, W, 3)."""
    return to_image(plot(views, rows, gain))


def plot(views, rows=4, gain=0.0):
    """A matplotlib Figure with one line for each of at most ``rows`` of the N, evenly spread: reference, candidate, difference.

    The difference is drawn ``gain`` times as bright as it is, 1 being the brightest; at 0 so that the largest one shown
    is the brightest. The colour bar counts in units of the difference itself. Raises ValueError without matplotlib.
    """
    count = len(views.labels)
    chosen = torch.linspace(0, count - 1, min(rows, count)).round().long().tolist()
    largest = float(views.difference[chosen].max())
    gain = gain or 1 / (largest or 1)
    height, width = views.difference.shape[1:]
    side = min(max(height, width, SMALLEST), LARGEST)
    cell = [max(side * length // max(height, width), 1) for length in (width, height)]
    figure, axes = new_figure(3 * cell[0] + BAR, len(chosen) * cell[1] + LINE, len(chosen), 3)
    for line, index in zip(axes, chosen):
        pictures = views.reference[index], views.candidate[index], views.difference[index]
        for axis, picture in zip(line, pictures):
            shown = axis.imshow(picture.cpu().numpy(), cmap="inferno", vmin=0, vmax=1 / gain, aspect="auto")
            axis.set(xticks=[], yticks=[])
        if count > 1:
            line[0].set_ylabel(views.labels[index])
    figure.colorbar(shown, ax=axes[:, 2], fraction=0.08)
    title = f"difference × {gain:.3g}" if largest else "no difference"
    for axis, name in zip(axes[0], ("reference", "candidate", title)):
        axis.set_title(name, fontsize=10)
    return figure


def _sample(values, most=1_000_000):
    """The values flat, thinned evenly where torch.quantile could not take them all."""
    values = values.flatten()
    return values[:: -(-len(values) // most)]
