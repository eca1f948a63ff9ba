"""Every guidance rule, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from ..core import Knob, complete
from .projected import RunningDifference, apg


@dataclass(frozen=True)
class Rule:
    """A guidance rule as users meet it, on denoised latents. At ``neutral`` it is plain CFG.

    ``new_state(knobs)``, given every knob, makes what the rule remembers in one run, or None: pass it as state.
    """

    rule: Callable
    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...]
    neutral: dict
    new_state: Callable[[dict], object] = lambda knobs: None

    def is_neutral(self, knobs):
        settings = complete(self.knobs, knobs)
        return all(settings[name] == value for name, value in self.neutral.items())

    def __call__(self, cond, uncond, scale, *, state=None, **knobs):
        return self.rule(cond, uncond, scale, state=state, **complete(self.knobs, knobs))


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
        new_state=lambda knobs: RunningDifference() if knobs["momentum"] else None,
    ),
}
