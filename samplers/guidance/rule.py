"""What a guidance rule is to users, and how it is applied to latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..core import HasNeutral, Knob, complete, takes


def wide(x):
    """In a precision good for sums over a whole latent: float64 where the device has it."""
    return x.to(torch.float64 if x.device.type in ("cpu", "cuda") else torch.float32)


@dataclass(frozen=True)
class Rule(HasNeutral):
    """A guidance rule as users meet it: ``rule(cond, uncond, scale, *, <knobs>) -> denoised``, all (B, C, ..., H, W).

    At ``neutral`` it is plain CFG. A rule with a parameter ``at`` is told the Moment, one with ``state`` what it remembers in
    this run: ``new_state(knobs)``, given every knob. A ``spatial`` rule looks at places, channels or frequencies, so that latents
    packed into one are taken apart for it. family is the node that offers it.
    """

    rule: Callable
    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...]
    neutral: dict
    family: str
    new_state: Callable[[dict], object] = lambda knobs: None
    spatial: bool = False

    def __call__(self, cond, uncond, scale, *, at=None, state=None, **knobs):
        settings = complete(self.knobs, knobs)
        if takes(self.rule, "state"):
            settings["state"] = state
        if not self.spatial or at is None or at.shapes is None:
            return self.one(cond, uncond, scale, at, settings)
        parts = zip(at.parts(cond), at.parts(uncond), at.split(), strict=True)
        return at.joined([self.one(c, u, scale, moment, settings) for c, u, moment in parts])

    def one(self, cond, uncond, scale, at, settings):
        return self.rule(cond, uncond, scale, **settings, **({"at": at} if takes(self.rule, "at") else {}))
