"""Adaptive Guidance: no unconditional evaluations once they agree with the conditional ones. Item by item.

Castillo et al. 2023, arXiv:2312.12487, section 4: the cosine of the two predictions rises towards 1 as sampling goes on, and
guidance past a threshold changes nothing one can see.
"""

from ...core import Knob
from .linear import Fading
from .reuse import Reuse
from .skip import Drop, Policy, Skip


class Adaptive(Policy):
    """Each item goes on without guidance after ``patience`` evaluations in a row at or above the threshold.

    With ``recheck`` it is evaluated again every so many steps, and guided on if then below threshold - hysteresis.
    """

    def __init__(self, threshold, hysteresis, patience, recheck, min_guided, max_guided, measure):
        self.measure = measure
        self.threshold, self.hysteresis, self.patience, self.recheck = threshold, hysteresis, patience, recheck
        self.min_guided, self.max_guided = min_guided, max_guided
        self.items = None

    def needed(self, moment):
        if self.items is None:
            self.items = [Item() for _ in range(len(moment.x))]
        decisions = [self.decide(item, moment.step) for item in self.items]
        reasons = dict.fromkeys(reason for needed, reason in decisions if not needed)
        self.reason = "; ".join(reasons)
        return [needed for needed, _ in decisions]

    def decide(self, item, step):
        guided = len(item.steps - {step})
        if guided < self.min_guided:
            return True, ""
        if self.max_guided and guided >= self.max_guided:
            return False, f"guided {guided} steps"
        if item.resting and not (self.recheck and step - max(item.steps) >= self.recheck):
            return False, f"similarity {item.similarity:.4f} reached {self.threshold:g}"
        return True, ""

    def observe(self, moment, similarity, items):
        for value, item in zip(similarity, (self.items[i] for i in items)):
            item.steps.add(moment.step)
            item.similarity = value
            item.agreed = item.agreed + 1 if value >= self.threshold else 0
            if item.resting:
                item.resting = value >= self.threshold - self.hysteresis
            else:
                item.resting = item.agreed >= self.patience


class Item:
    """What is known of one item: the steps at which it was guided, the latest similarity, how often it agreed in a row."""

    def __init__(self):
        self.steps, self.similarity, self.agreed, self.resting = set(), None, 0, False


def check(settings):
    least, most = settings["min_guided"], settings["max_guided"]
    if most and most < least:
        raise ValueError(f"max_guided is {most} and min_guided {least}: give at least as many, or 0 for no limit.")


INSTEAD = {"fading": lambda: Fading(trust=0.5), "difference": lambda: Reuse(whole=False), "nothing": Drop}

ADAPTIVE = Skip(
    "Adaptive Guidance", "Castillo et al. 2023, arXiv:2312.12487",
    "the second half of a run at half the cost; every picture decides for itself",
    (
        Knob("threshold", 0.95, "Go on without the negative prompt once its prediction agrees with the prompt's: cosine of the two "
             "velocities. Lower saves more and changes more. Neutral: 1.01, never.",
             min=0.0, max=1.01, step=0.001),
        Knob("min_guided", 4, "Guide at least so many steps. 1 as published.", min=1, max=1000, step=1),
        Knob("max_guided", 0, "Guide at most so many steps, whatever they say. 0: no limit.", min=0, max=1000, step=1),
        Knob("instead", "fading", "What steps without it get: the last difference between the two predictions, fading as measured or as "
             "it was; or nothing, as published, which leaves them unguided.", options=tuple(INSTEAD)),
        Knob("recheck", 5, "Evaluate it again every so many steps, and guide on if the two have come apart. 0, as published: never, for "
             "instead nothing.", min=0, max=1000, step=1),
        Knob("measure", "velocity", "What is compared. velocity: a velocity on every model, so that one threshold suits all. output: "
             "as published, predicted noise on models that predict noise or v, whose cosine is near 1 from the first step on.",
             options=("velocity", "output"), advanced=True),
        Knob("patience", 1, "So many evaluations in a row must agree.", min=1, max=100, step=1, advanced=True),
        Knob("hysteresis", 0.005, "How far below the threshold they must have come apart to guide on.",
             min=0.0, max=1.0, step=0.001, advanced=True),
    ),
    neutral={"threshold": 1.01, "max_guided": 0},
    policy=lambda settings, to_sigma: Adaptive(**{name: value for name, value in settings.items() if name != "instead"}),
    forecast=lambda settings: INSTEAD[settings["instead"]](),
    check=check,
)  # fmt: skip
