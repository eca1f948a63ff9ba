"""How to sample with one public distilled model, or one variant of it where the settings differ: data that check themselves."""

import re
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import exp, isfinite

from .bases import BASES

PREDICTIONS = ("eps", "v", "x0", "flow", "cosmos")
FORMS = ("checkpoint", "lora", "both")
TRAINED = ("any", "listed")
UNITS = ("timesteps", "levels", "sigmas")
SPACINGS = {"trailing": (True, False), "lcm": (False,), "linspace": (True,), "beta": (True,)}  # rule of trajectory.py: for flow or not


@dataclass(frozen=True)
class Shift:
    """A flow's shift that depends on the run: ``at(tokens, steps)``.

    kind "linear mu": exp(mu), mu on the straight line through (base_tokens, base_shift) and (max_tokens, max_shift), as diffusers'
    calculate_shift; "flux2": exp of diffusers' compute_empirical_mu, which needs the number of steps too.
    """

    kind: str
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    def __post_init__(self):
        if self.kind not in ("linear mu", "flux2"):
            raise ValueError(f"shift is of kind {self.kind!r}: it must be a number, or of kind 'linear mu' or 'flux2'.")
        if self.base_tokens >= self.max_tokens:
            raise ValueError(f"shift has max_tokens {self.max_tokens}: it must be above base_tokens, {self.base_tokens}.")

    def at(self, tokens, steps):
        if self.kind == "flux2":
            return exp(_flux2_mu(tokens, steps))
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return exp(self.base_shift + slope * (tokens - self.base_tokens))


def _flux2_mu(tokens, steps):
    """Fitted by Black Forest Labs; diffusers' compute_empirical_mu, pipelines/flux2/pipeline_flux2.py."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (steps - 200)


@dataclass(frozen=True)
class TurboProfile:
    """One way to sample one distilled model. ValueError, on construction, that names the key, the field and what it must be.

    key, title: name in lists, and for people. base: key of BASES. prediction: what the distilled network predicts. form: whether
    it is published as a checkpoint, a LoRA or both. steps: offered; default_steps: one of them.
    Where the steps lie is one of: points, {steps: (...)}, the levels at which the network is evaluated, falling, without the 0 at
    the end, in a unit: "timesteps" (entries of the training table, 0 to 999), "levels" (of a flow, 0 to 1, before the shift) or
    "sigmas" (as ComfyUI counts them, after any shift); or spacing, the name of a rule: see trajectory.py.
    trained: "listed" where the student knows these levels only, "any" where it knows them all.
    shift: of a flow, as ModelSamplingSD3 counts it; a ``Shift`` where it depends on the size; None: the model's own.
    sampler: a name in ComfyUI's list or in SOLVERS; knobs: of it. cfg: the usual scale; cfg_range: what the student bears. guidance:
    the embedded guidance (FluxGuidance), None where there is none. negative: whether a negative prompt is of use, at a cfg above 1.
    strength: of the LoRA. own_files: each number of steps has weights of its own. boundary: of a pair of networks, the sigma at
    and above which the high-noise one works; None for one network. names: patterns of file names, lower case, tried with
    re.search; a group called steps tells which file it is. licence, sources, note: for people. unavailable: why ComfyUI cannot
    sample it, "" where it can. unconfirmed: names of fields that nothing at hand confirmed.
    """

    key: str
    title: str
    base: str
    prediction: str
    form: str
    steps: tuple[int, ...]
    default_steps: int
    sampler: str
    cfg: float
    sources: tuple[str, ...]
    licence: str
    cfg_range: tuple[float, float] = (1.0, 1.0)
    trained: str = "any"
    unit: str = ""
    points: dict[int, tuple[float, ...]] = field(default_factory=dict)
    spacing: str = ""
    shift: float | Shift | None = None
    knobs: dict = field(default_factory=dict)
    guidance: float | None = None
    negative: bool = False
    strength: float = 1.0
    own_files: bool = False
    boundary: float | None = None
    names: tuple[str, ...] = ()
    note: str = ""
    unavailable: str = ""
    unconfirmed: tuple[str, ...] = ()

    def __post_init__(self):
        for name, kept in (("steps", tuple), ("cfg_range", tuple), ("names", tuple), ("sources", tuple), ("unconfirmed", tuple)):
            object.__setattr__(self, name, kept(getattr(self, name)))
        points = {int(steps): tuple(float(point) for point in levels) for steps, levels in self.points.items()}
        object.__setattr__(self, "points", points)
        check(self)

    @property
    def is_flow(self):
        return self.prediction == "flow"

    def shift_at(self, tokens, steps):
        """The shift of a run, None where it is the model's own. ValueError where it depends on a size that is not given."""
        if not isinstance(self.shift, Shift):
            return self.shift
        if tokens is None:
            raise ValueError(
                f"the profile {self.key} shifts its noise levels by the size of the picture, and none is known. Connect latent, the "
                "latent that will be sampled."
            )
        return self.shift.at(tokens, steps)

    @classmethod
    def recorded(cls, recorded, base, key="recorded", title="as the file records"):
        """Of what a file of this pack's own distillation records: an object with steps, sampler, sigmas, cfg, strength and knobs.

        base: key of BASES of the model it is for. The last of its sigmas is taken to be 0, as those of this pack's runs are.
        """
        return cls(
            key=key, title=title, base=base, prediction=BASES[base].prediction, form="lora", steps=(recorded.steps,),
            default_steps=recorded.steps, sampler=recorded.sampler, knobs=dict(recorded.knobs), cfg=recorded.cfg,
            cfg_range=(min(1.0, recorded.cfg), max(1.0, recorded.cfg)), negative=recorded.cfg > 1, strength=recorded.strength,
            unit="sigmas", points={recorded.steps: tuple(recorded.sigmas[:-1])}, trained="listed", licence="as the file says",
            sources=("the LoRA's own metadata",),
        )  # fmt: skip


def from_entry(entry):
    """The TurboProfile of one JSON object: its fields by name, but points stand under the name of their unit."""
    entry = dict(entry)
    key = entry.get("key", "without a key")
    for unit in UNITS:
        if unit in entry:
            entry["unit"], entry["points"] = unit, entry.pop(unit)
    if isinstance(entry.get("shift"), dict):
        entry["shift"] = Shift(**entry["shift"])
    known = {each.name for each in fields(TurboProfile)}
    needed = {"key", "title", "base", "prediction", "form", "steps", "default_steps", "sampler", "cfg", "sources", "licence"}
    for names, what in ((entry.keys() - known, "unknown"), (needed - entry.keys(), "missing")):
        if names:
            raise ValueError(f"turbo profile {key}: {what} field {', '.join(sorted(names))}.")
    return TurboProfile(**entry)


def check(profile):
    """ValueError that names the profile, the field, its value and what it must be."""

    def require(right, name, wanted):
        if not right:
            raise ValueError(f"turbo profile {profile.key}: {name} is {getattr(profile, name)!r}: it must be {wanted}.")

    def number(name, wanted, lowest=None, above=None):
        value = getattr(profile, name)
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
        require(right and (lowest is None or value >= lowest) and (above is None or value > above), name, wanted)

    for name in ("key", "title", "sampler", "licence"):
        require(isinstance(getattr(profile, name), str) and getattr(profile, name).strip(), name, "a text")
    require(re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", profile.key), "key", "words in lower case joined by -")
    require(profile.base in BASES, "base", "a key of BASES: " + ", ".join(BASES))
    require(profile.prediction in PREDICTIONS, "prediction", "one of " + ", ".join(PREDICTIONS))
    require(profile.form in FORMS, "form", "one of " + ", ".join(FORMS))
    require(profile.trained in TRAINED, "trained", "one of " + ", ".join(TRAINED))
    require(profile.sources and all(isinstance(source, str) and source for source in profile.sources), "sources", "a list of texts")
    whole = all(type(steps) is int and steps >= 1 for steps in profile.steps)
    require(profile.steps and whole and list(profile.steps) == sorted(set(profile.steps)), "steps", "rising whole numbers from 1")
    require(profile.default_steps in profile.steps, "default_steps", f"one of steps, {profile.steps}")
    number("cfg", "a finite number of at least 0", lowest=0)
    low_high = len(profile.cfg_range) == 2 and 0 <= profile.cfg_range[0] <= profile.cfg <= profile.cfg_range[1]
    require(low_high, "cfg_range", f"(least, most) with cfg, {profile.cfg:g}, between them")
    require(not profile.negative or profile.cfg_range[1] > 1, "negative", "False where cfg is never above 1")
    number("strength", "a finite number other than 0")
    require(profile.strength != 0, "strength", "a finite number other than 0")
    if profile.guidance is not None:
        number("guidance", "None or a finite number of at least 0", lowest=0)
    if isinstance(profile.shift, Shift):
        require(profile.is_flow, "shift", "None, as the model is no flow model")
    elif profile.shift is not None:
        number("shift", "None, a Shift or a number above 0", above=0)
        require(profile.is_flow, "shift", "None, as the model is no flow model")
    if profile.boundary is not None:
        number("boundary", "None or a number between 0 and 1", above=0)
        require(profile.is_flow and profile.boundary < 1, "boundary", "None, or between 0 and 1 on a flow model")
    for name in profile.names:
        try:
            re.compile(name)
        except re.error as error:
            raise ValueError(f"turbo profile {profile.key}: names has {name!r}, no regular expression: {error}.") from None
        require(name.replace("(?P<", "") == name.replace("(?P<", "").lower(), "names", "patterns in lower case")
    known = {each.name for each in fields(TurboProfile)}
    require(set(profile.unconfirmed) <= known, "unconfirmed", "a list of names of fields")
    require(isinstance(profile.knobs, dict), "knobs", "the settings of the sampler by name")
    check_trajectory(profile, require)


def check_trajectory(profile, require):
    """Points or a spacing, and no more; points for each number of steps offered, within their unit, and falling."""
    require(bool(profile.points) != bool(profile.spacing), "spacing", "given where no timesteps, levels or sigmas are, and only there")
    if profile.spacing:
        require(profile.spacing in SPACINGS, "spacing", "one of " + ", ".join(SPACINGS))
        require(profile.is_flow in SPACINGS[profile.spacing], "spacing", "one for what the profile predicts")
        return
    require(profile.unit in UNITS, "unit", "one of " + ", ".join(UNITS))
    require(profile.unit != "timesteps" or not profile.is_flow, "unit", "levels or sigmas for a flow model")
    require(profile.unit != "levels" or profile.is_flow, "unit", "timesteps or sigmas for a model that is no flow model")
    require(set(profile.points) == set(profile.steps), "points", f"one list for each of steps, {profile.steps}")
    for steps, points in profile.points.items():
        require(len(points) == steps, "points", f"{steps} values for {steps} steps")
        require(all(after < before for before, after in pairwise(points)), "points", "falling values")
        require(all(isfinite(point) for point in points), "points", "finite values")
        if profile.unit == "timesteps":
            require(all(point == int(point) and 0 <= point <= 999 for point in points), "points", "whole timesteps from 0 to 999")
        elif profile.is_flow:
            require(0 < points[-1] and points[0] <= 1, "points", "above 0 and at most 1 on a flow model")
        else:
            require(points[-1] > 0, "points", "above 0")
