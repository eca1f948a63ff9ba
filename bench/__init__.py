"""Benchmarks behind ``make bench``. Each is one file with ``measure() -> Result``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What was measured: a sentence on how, and a table with one dict per row."""

    question: str
    method: str
    rows: list[dict]
