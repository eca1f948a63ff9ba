"""What a solver declares, and how it is called."""

from collections.abc import Callable
from dataclasses import dataclass

from ..core import Knob, check_sigmas, complete, takes, with_path


@dataclass(frozen=True)
class Solver:
    """A solver as users meet it: checks their input, then calls ``sample``. Takes the place of a k-diffusion sampler.

    ``sample`` gets ``path`` and ``noise_sampler`` where its signature has them, and any further argument of its own that is no
    knob, such as a recipe. Without a noise source it draws from ``noise.from_seed``.
    """

    sample: Callable
    family: str
    title: str
    order: Callable[[dict], int]  # given all the knobs: order of accuracy in 1 / steps, on uneven steps, without noise
    evaluations: int  # model calls per step, at the default knobs
    stochastic: bool  # at the default knobs
    source: str
    good_for: str
    knobs: tuple[Knob, ...] = ()
    calls: Callable[[int, dict], int] | None = None  # of a run of n steps that ends at sigma 0, where not n * evaluations
    looks_back: Callable[[dict], dict] = lambda knobs: {}  # {knob: how many steps it makes use of}, for multistep methods
    mixes_sigmas: bool = False  # calls the model with several noise levels at once; then on several states of each item, too

    @property
    def needs_path(self):
        return takes(self.sample, "path")

    @property
    def needs_noise(self):
        return takes(self.sample, "noise_sampler")

    def declared_order(self, **knobs):
        return self.order(complete(self.knobs, knobs))

    def count(self, steps, **knobs):
        """Model calls of a run of so many steps that ends at sigma 0; at most so many, where the run itself decides."""
        settings = complete(self.knobs, knobs)
        return self.calls(steps, settings) if self.calls else steps * self.evaluations

    def describe(self, **knobs):
        """What a user wants to know before choosing it, one fact a line."""
        ten = self.count(10, **knobs)
        facts = (
            f"{self.title}: {self.source}",
            f"Order of accuracy: {self.declared_order(**knobs)}",
            f"Model evaluations: {ten} in 10 steps",
            f"Draws noise: {'yes' if self.stochastic else 'no'}",
            f"Good for: {self.good_for}",
        )
        return "\n".join(facts)

    def __call__(
        self, model, x, sigmas, extra_args=None, callback=None, disable=None, *, path=None, noise_sampler=None, **knobs
    ):
        check_sigmas(sigmas)
        own = {knob.name for knob in self.knobs}
        further = {name: value for name, value in knobs.items() if name not in own and takes(self.sample, name)}
        settings = complete(self.knobs, {name: value for name, value in knobs.items() if name not in further})
        self._check_history(settings, len(sigmas) - 1)
        settings |= further
        if self.needs_path:
            settings["path"] = with_path(self.title, path, "sigmas[0]", sigmas[0])
        if self.needs_noise:
            settings["noise_sampler"] = noise_sampler
        return self.sample(model, x, sigmas, extra_args, callback, disable, **settings)

    def _check_history(self, settings, steps):
        """ValueError where a knob that is not at its default looks back on more steps than there are."""
        defaults = {knob.name: knob.default for knob in self.knobs}
        for name, used in self.looks_back(settings).items():
            if used > steps and settings[name] != defaults[name]:
                raise ValueError(
                    f"{name} is {settings[name]:g}, which makes use of {used} steps, and sigmas has {steps}: lower {name}, or give "
                    "more steps."
                )
