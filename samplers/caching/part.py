"""What a part of a cache is to users: a policy or a forecast, with its settings."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..core import HasNeutral, Knob, complete


@dataclass(frozen=True)
class Part(HasNeutral):
    """``begin`` makes a small object for one run. With the ``neutral`` settings nothing is skipped; None: no setting does that.

    make(settings, **given) is told what is no single value and so no knob, as the file of the part says: a mask, ratios,
    coefficients. check(settings) raises ValueError for settings that contradict each other.
    """

    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...]
    make: Callable
    neutral: dict | None = None
    check: Callable = field(default=lambda settings: None)

    def begin(self, knobs, **given):
        """A Policy or a Forecast at the start of a run. ValueError on a bad setting."""
        settings = complete(self.knobs, knobs)
        self.check(settings)
        return self.make(settings, **given)
