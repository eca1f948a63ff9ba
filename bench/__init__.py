"""Benchmarks behind ``make bench``. Each is one file with ``measure() -> Result``, and one line in ``__main__``."""

from dataclasses import dataclass, field

import tools  # noqa: F401  registers comfyui_distillery

from .draw import Lines, Ratios


class Unavailable(Exception):
    """This machine cannot run the benchmark, and why. Figures measured elsewhere are kept."""


@dataclass(frozen=True)
class Result:
    """What was measured and how, in sentences; one dict per row; how to draw them; if not all rows are to be shown in the table
    or drawn, those that are."""

    question: str
    method: str
    rows: list[dict]
    plot: Lines | Ratios
    table: list[dict] = field(default_factory=list)
    drawn: list[dict] = field(default_factory=list)
