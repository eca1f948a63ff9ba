"""A recipe: all that a run needs beside the model and the prompts, as data that a JSON file holds."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..samplers.core import complete
from .checkpoints import save_json
from .formats.profile import Profile
from .laws import LAWS
from .objectives import OBJECTIVES
from .optimisers import OPTIMISERS
from .settings import FREE, SECTIONS

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """objective and knobs: of OBJECTIVES. law and law_knobs: of LAWS. The others: settings of SECTIONS, by name.

    What is not given is filled in. ValueError, on construction, that names what cannot be, its value and the remedy.
    """

    objective: str = "phased"
    knobs: dict = field(default_factory=dict)
    law: str = "uniform"
    law_knobs: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    lora: dict = field(default_factory=dict)
    optimiser: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)
    profile: dict = field(default_factory=dict)

    def __post_init__(self):
        knobs = _named("objective", self.objective, OBJECTIVES).knobs
        law_knobs = _named("law", self.law, LAWS).knobs
        for name, known in {"knobs": knobs, "law_knobs": law_knobs, **SECTIONS}.items():
            object.__setattr__(self, name, _completed(name, known, getattr(self, name)))
        self._check()

    def _check(self):
        needs, steps = OBJECTIVES[self.objective].needs, self.taught_steps
        if self.knobs.get("toward") == "average" and not self.optimiser["ema"]:
            raise ValueError("knobs.toward is 'average' and optimiser.ema is 0: raise ema, or use 'student'.")
        if self.data["perturbation"] and needs != "captioned":
            raise ValueError(
                f"data.perturbation is {self.data['perturbation']:g}, and the targets of {self.objective} follow from what the student "
                "sees: set it to 0. It is for gft."
            )
        if self.data["immiscible"] > 1 and needs == "pairs":
            raise ValueError(
                f"data.immiscible is {self.data['immiscible']}, and each pair of {self.objective} has its own noise: set it to 1."
            )
        if self.run["micro_batch"] > self.run["batch"]:
            raise ValueError(
                f"run.micro_batch is {self.run['micro_batch']}, more than run.batch, {self.run['batch']}: lower it, or 0 for all."
            )
        first, last = (self.knobs.get(name, 1) for name in ("first", "last"))
        if self.objective == "progressive" and first < last:
            raise ValueError(f"knobs.first is {first}, fewer than last, {last}: steps are only halved. Raise first.")
        if self.objective != "progressive" and first > last:
            raise ValueError(f"knobs.first is {first}, more than last, {last}: noise levels only grow. Lower first.")
        if steps and self.profile["steps"] not in (0, steps):
            raise ValueError(
                f"profile.steps is {self.profile['steps']}, and the objective teaches {steps}: set it to 0, or change the objective's."
            )

    @property
    def taught_steps(self):
        """How many steps the objective fixes, or None."""
        return OBJECTIVES[self.objective].steps(self.knobs)

    @property
    def lr(self):
        return self.optimiser["lr"] or OPTIMISERS[self.optimiser["name"]].lr

    @property
    def evaluations(self):
        """Forwards of the model an item and step; a trained pass counts as 3."""
        return OBJECTIVES[self.objective].evaluations(self.knobs)

    def identity(self):
        """What must stay when a run is continued, as a dict."""
        whole = asdict(self)
        for section, names in FREE.items():
            whole[section] = {name: value for name, value in whole[section].items() if name not in names}
        return whole

    def sampled_by(self, levels):
        """The Profile that the student is to be sampled with: even steps in the model's time, as it was taught."""
        steps = self.taught_steps or self.profile["steps"] or DEFAULT_STEPS[self.objective]
        sampler = OBJECTIVES[self.objective].sampler
        return Profile(steps, sampler, tuple(levels.grid(steps).tolist()), self.profile["cfg"])

    def to_json(self):
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value):
        """ValueError where it is not a recipe of this version, or has a name that no recipe has."""
        if not isinstance(value, dict) or value.get("version") != VERSION:
            raise ValueError(f"this is not a recipe of version {VERSION}: make one with the Recipe node or Recipe.save.")
        given, known = {name: part for name, part in value.items() if name != "version"}, [entry.name for entry in fields(cls)]
        for name, part in given.items():
            if name not in known:
                raise ValueError(f"the recipe has {name!r}: there is {', '.join(known)}.")
            kind, meant = (str, "a name") if name in ("objective", "law") else (dict, "an object of settings")
            if type(part) is not kind:
                raise ValueError(f"{name} is {part!r}: it must be {meant}.")
        return cls(**given)

    def save(self, path):
        save_json(path, self.to_json())

    @classmethod
    def load(cls, path):
        """From a JSON file. ValueError, naming the file, where it holds no recipe."""
        try:
            return cls.from_json(json.loads(Path(path).read_text("utf-8")))
        except ValueError as error:  # JSON's own among them
            raise ValueError(f"{path}: {error}") from error


DEFAULT_STEPS = {"guidance": 20, "gft": 20, "consistency": 4, "reflow": 2}  # of those that fix none


def _named(field, name, registry):
    if name not in registry:
        raise ValueError(f"{field} is {name!r}: it must be one of {', '.join(registry)}.")
    return registry[name]


def _completed(section, knobs, given):
    try:
        return complete(knobs, given)
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error
