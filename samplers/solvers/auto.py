"""The solver to try first: what measured best at this number of steps on models of this kind.

The choices are data, auto.json, made by ``tools.choose_solver`` from the errors of every solver that calls the model once a
step: on both bundled models and on problems with exact answers, with and without guidance.
"""

import json
from pathlib import Path

from .solver import Solver

CHOICES = json.loads(Path(__file__).with_name("auto.json").read_text("utf-8"))  # {"ve" or "flow": rows, rising in steps}


def choice(path, steps):
    """The row {"steps", "solver", "knobs"} for a run of so many steps: the last that does not ask for more."""
    rows = CHOICES["flow" if path.is_flow else "ve"]
    return max((row for row in rows if row["steps"] <= steps), key=lambda row: row["steps"], default=rows[0])


def sample_auto(model, x, sigmas, extra_args=None, callback=None, disable=None, *, path):
    from . import SOLVERS  # which this is one of

    row = choice(path, len(sigmas) - 1)
    return SOLVERS[row["solver"]](model, x, sigmas, extra_args, callback, disable, path=path, **row["knobs"])


def order(knobs):
    """At many steps, on the kind of model where it is lower."""
    from . import SOLVERS

    lasts = (rows[-1] for rows in CHOICES.values())
    return min(SOLVERS[row["solver"]].declared_order(**row["knobs"]) for row in lasts)


SOLVERS = {
    "auto": Solver(
        sample_auto, "auto", "Auto", order, 1, False,
        "this pack's measurements, auto.json, of published solvers: arXiv:2302.04867, arXiv:2307.11118 and others",
        "everything, to begin with: the solver that measured best for the number of steps and the kind of model",
    ),
}
