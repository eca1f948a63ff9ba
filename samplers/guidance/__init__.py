"""Every guidance rule, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from ..core import Knob, complete, takes
from .projected import RunningDifference, apg


@dataclass(frozen=True)
class Rule:
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

    def is_neutral(self, knobs):
        settings = complete(self.knobs, knobs)
        return all(settings[name] == value for name, value in self.neutral.items())

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


RULES = {
    "apg": Rule(
        apg, "Adaptive projected guidance (APG)", "Sadat et al. 2024, arXiv:2410.02416",
        "high CFG without burnt colours",
        (
            Knob("eta", 0.0, "Share to keep of the guidance that points along the prediction, the part that saturates. "
                 "0 = none, as published; 1 = all, as in plain CFG.", min=0.0, max=1.0, step=0.01),
            Knob("norm_threshold", 15.0, "Longest guidance allowed, as a norm over the whole latent; it grows with latent "
                 "size. 0 = no limit, as in plain CFG. The paper uses 2.5 to 15; 15 is its value for SDXL.",
                 min=0.0, max=1000.0, step=0.5),
            Knob("momentum", -0.5, "Share of earlier steps' guidance to add. 0 = none, as in plain CFG. Negative pushes "
                 "away from it; the paper uses -0.75 to -0.5.", min=-1.0, max=1.0, step=0.01),
        ),
        neutral={"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0},
        family="projected",
        new_state=lambda knobs: RunningDifference() if knobs["momentum"] else None,
    ),
}
