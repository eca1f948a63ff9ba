"""How far a prediction is from its target, one number an item."""

from ..samplers.core import Knob, batch_dims


def squared(difference, c=None):
    """Mean square of every element: (B, ...) -> (B,)."""
    return difference.square().mean(batch_dims(difference))


def pseudo_huber(difference, c):
    """sqrt(r^2 + c^2) - c of the root mean square r: r^2 / 2c far below c, r far above it.

    Song & Dhariwal 2023, arXiv:2310.14189, section 3.3, over the whole latent and divided by the root of its size: their
    0.00054 sqrt(size) is c = 0.00054 here.
    """
    return (squared(difference) + c**2).sqrt() - c


def pseudo_huber_each(difference, c):
    """The same element by element, then averaged, as diffusers' latent consistency training has it with c = 0.001."""
    return ((difference.square() + c**2).sqrt() - c).mean(batch_dims(difference))


DISTANCES = {"huber": pseudo_huber, "huber_each": pseudo_huber_each, "squared": squared}


def distance_knobs(default):
    """squared for targets that are random given what the student sees: of these alone it is the mean that has the least error."""
    return (
        Knob("distance", default, "How an error is measured: squared is the mean square; huber (pseudo-Huber of the whole latent) "
             "and huber_each (of each element) hardly mind single large errors.", options=tuple(DISTANCES), advanced=True),
        Knob("huber_c", 0.03, "Error below which pseudo-Huber is a square, in units of a latent value. The larger, the more it is "
             "like squared. Published: 0.00054 for huber, 0.001 for huber_each, with which few values train unsteadily.",
             min=1e-6, max=100.0, step=1e-5, advanced=True),
    )  # fmt: skip
