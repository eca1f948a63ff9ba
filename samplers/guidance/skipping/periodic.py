"""Every n-th step: the unconditional branch is evaluated now and then, and what it said last is used again in between."""

import torch

from ...core import Knob
from .skip import Drop, Policy, Skip


class Periodic(Policy):
    """Evaluates at the first ``warm_up`` steps, then at every ``every``-th one; another call at a step decides like its first."""

    def __init__(self, every, warm_up):
        self.every, self.warm_up = every, warm_up

    def needed(self, moment):
        past = moment.step - self.warm_up
        self.reason = f"step {past % self.every + 1} of {self.every}"
        return [past < 0 or past % self.every == self.every - 1] * len(moment.x)


class Latest:
    """The latest value of each item, (B, ...): rows may be written at different times."""

    def __init__(self):
        self.value = None

    def write(self, rows, items, count):
        """rows are of these items, out of ``count``."""
        if len(items) == count:
            self.value = rows
            return
        value = rows.new_zeros(count, *rows.shape[1:]) if self.value is None else self.value
        self.value = value.index_copy(0, torch.tensor(items, device=rows.device), rows)


class Reuse(Drop):
    """The last difference again, or with ``whole`` the last unconditional prediction itself."""

    word, least = "reuse", 1

    def __init__(self, whole):
        self.whole, self.latest = whole, Latest()

    def observe(self, moment, cond, difference, items):
        self.latest.write(cond - difference if self.whole else difference, items, len(moment.x))

    def difference(self, moment, cond):
        return cond - self.latest.value if self.whole else self.latest.value


FORECASTS = {"difference": lambda: Reuse(whole=False), "unconditional": lambda: Reuse(whole=True), "nothing": Drop}

EVERY = Knob("every", 2, "Evaluate the negative prompt at every so many steps. Neutral: 1, always.", min=1, max=100, step=1)
WARM_UP = Knob("warm_up", 1, "Evaluate it at each of so many first steps.", min=1, max=1000, step=1)

PERIODIC = Skip(
    "Every n-th Step", "the guidance reused between steps, as in FasterCache's plainest form, Lv et al. 2024, arXiv:2410.19355",
    "a fixed saving, the same for every picture",
    (
        EVERY, WARM_UP,
        Knob("reuse", "difference", "What the steps between take over from the last evaluated one: the difference between the two "
             "predictions, the unconditional prediction, or nothing, which leaves them unguided.", options=tuple(FORECASTS)),
    ),
    neutral={"every": 1},
    policy=lambda settings, to_sigma: Periodic(settings["every"], settings["warm_up"]),
    forecast=lambda settings: FORECASTS[settings["reuse"]](),
)  # fmt: skip
