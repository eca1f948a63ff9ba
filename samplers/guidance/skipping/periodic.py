"""Every n-th step: the unconditional branch is evaluated now and then, and what it said last is used again in between."""

from ...core import Knob
from .reuse import FORECASTS, REUSE
from .skip import Policy, Skip


class Periodic(Policy):
    """Evaluates at the first ``warm_up`` steps, then at every ``every``-th one; another call at a step decides like its first."""

    def __init__(self, every, warm_up):
        self.every, self.warm_up = every, warm_up

    def needed(self, moment):
        past = moment.step - self.warm_up
        self.reason = f"step {past % self.every + 1} of {self.every}"
        return [past < 0 or past % self.every == self.every - 1] * len(moment.x)


EVERY = Knob("every", 2, "Evaluate the negative prompt at every so many steps. Neutral: 1, always.", min=1, max=100, step=1)
WARM_UP = Knob("warm_up", 2, "Evaluate it at each of so many first steps.", min=1, max=1000, step=1)

PERIODIC = Skip(
    "Every n-th Step", "the guidance reused between steps, as in FasterCache's plainest form, Lv et al. 2024, arXiv:2410.19355",
    "a fixed saving, the same for every picture",
    (EVERY, WARM_UP, REUSE),
    neutral={"every": 1},
    policy=lambda settings, to_sigma: Periodic(settings["every"], settings["warm_up"]),
    forecast=lambda settings: FORECASTS[settings["reuse"]](),
)  # fmt: skip
