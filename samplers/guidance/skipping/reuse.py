"""What stands in for the unconditional prediction at a skipped step: what the last evaluated one said."""

import torch

from ...core import Knob
from .skip import Drop


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
REUSE = Knob(
    "reuse", "difference", "What skipped steps take over from the last evaluated one: the difference between the two predictions, the "
    "unconditional prediction, or nothing, which leaves them unguided.", options=tuple(FORECASTS),
)  # fmt: skip
