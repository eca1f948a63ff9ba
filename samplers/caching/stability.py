"""Stability: skip while the latents move as an extrapolation of their past says they would.

After SADA, Jiang et al. 2025, arXiv:2507.17135. Its code moves by one training step instead of one step of the run, its weights
5/8, 3/4, -3/8 are consistent to first order only, and the sign of a mean over all elements decides. Here the next latent is
predicted by Adams-Bashforth of order 3 in sigma with the real steps, and skipped while its distance to the actual latent, over
the latent's movement since the last evaluation, is below a threshold, in the worst item of the batch.
On a solver that is itself Adams-Bashforth of order 3 in sigma (ipndm) the prediction is the solver's own step: then only
``most_in_a_row`` limits the skips. A solver that adds noise is never stable.
"""

import torch

from ..core import Knob, batch_dims
from .adams import adams_bashforth
from .forecast import combined
from .part import Part
from .policy import COMMON, Policy, below

EVALUATIONS = 3


class Stability(Policy):
    needs = ("latents",)

    def __init__(self, stability_threshold, **common):
        super().__init__(**common)
        self.stability_threshold = stability_threshold
        self.begin()

    def begin(self):
        self.sigmas, self.slopes, self.x = (), (), None  # of the evaluations, newest last; x at the newest
        self.measured, self.error = None, None  # sigma, and the error there of each item, (B,)

    def observe(self, x, d, sigma):
        if self.sigmas and sigma > self.sigmas[-1]:
            self.begin()  # noise was added: another trajectory
        if len(self.sigmas) == EVALUATIONS and sigma not in (self.sigmas[-1], self.measured):
            self.measured, self.error = sigma, self.error_at(x, sigma)
        if d is not None:
            again = len(self.sigmas) - (sigma in self.sigmas[-1:])  # a second evaluation at one sigma replaces the first
            self.sigmas = (*self.sigmas[:again], sigma)[-EVALUATIONS:]
            self.slopes = (*self.slopes[:again], d)[-EVALUATIONS:]
            self.x = x
        return None if self.error is None else self.error.max()

    def error_at(self, x, sigma):
        """Distance between x and its prediction over its movement since the last evaluation, (B,). Not moved at all: 0."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        slope = combined([d.to(dtype) for d in self.slopes], adams_bashforth(self.sigmas, sigma))
        moved = x.to(dtype) - self.x
        off = moved - (sigma - self.sigmas[-1]) * slope
        squares = [part.square().sum(batch_dims(part)) for part in (off, moved)]
        return (squares[0] / torch.where(squares[0] == 0, 1, squares[1])).sqrt()

    def can_skip(self, step):
        if step.latent_error is None:
            return False, f"{len(self.sigmas)} of {EVALUATIONS} evaluations before the first prediction"
        return below(step.latent_error, self.stability_threshold, "error of the predicted latents")

    @property
    def memory(self):
        return sum(tensor.nbytes for tensor in (*self.slopes, self.x) if tensor is not None)


STABILITY = Part(
    "Stability", "after SADA, Jiang et al. 2025, arXiv:2507.17135", "any network and smooth solvers such as euler: looks at latents only",
    (
        Knob("stability_threshold", 0.3, "Skip while the latents lie within this share of their movement from where their past says. "
             "Neutral: 0, never.", min=0.0, max=10.0, step=0.01),
        *COMMON,
    ),
    make=lambda settings: Stability(**settings), neutral={"stability_threshold": 0.0},
)  # fmt: skip
