"""Reuse: the last evaluated value again. Order 0: exact where nothing changes."""

from .forecast import Forecast
from .part import Part


class Reuse(Forecast):
    def __init__(self):
        super().__init__(keep=1)

    def weights(self, ats, at):
        return (1.0,)


REUSE = Part(
    "Reuse", "DeepCache, Ma et al. 2023, arXiv:2312.00858, and most caches since", "the least memory, and the safest at few steps",
    (), make=lambda settings: Reuse(),
)  # fmt: skip
