"""Chooses the solvers of the Auto Sampler: ``python3 -m tools.host --run -m tools.choose_solver``. Writes auto.json.

Every candidate calls the model once a step and draws no noise, so that steps are evaluations. For each kind of model and
number of steps the winner has the least mean log error over the problems of ``bench.solvers`` of that kind; guided and
unguided, exact mixture and bundled model count alike.
"""

import argparse
import json
import math
from pathlib import Path

from comfyui_distillery.samplers.solvers import SOLVERS, auto

from bench import hosted
from bench.solvers import problems
from bench.timing import relative_error

STEPS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30)
FILE = Path(auto.__file__).with_name("auto.json")
VARIANTS = {  # beside the defaults
    "ghvb": [{"order": order, "variable_step": flag} for order in (1.5, 2.0, 3.0) for flag in (False, True)],
    "unipc": [{"order": order, "variant": variant} for order in (2, 3) for variant in ("bh1", "bh2")],
    "deis": [{"deis_mode": mode, "order": order} for mode in ("tab", "rhoab", "logrho") for order in (2, 3)],
    "dpm_solver_pp": [{"order": order, "weights": weights} for order in (2, 3) for weights in ("published", "exact")],
    "gradient_estimation": [{"gamma": 1.5}],
}


def candidates():
    """[(key, knobs)] of all that call the model once a step and draw no noise."""
    usual = [key for key, solver in SOLVERS.items() if solver.family not in ("auto", "turbo") and not solver.stochastic]
    found = [(key, {}) for key in usual] + [(key, knobs) for key, rows in VARIANTS.items() for knobs in rows]
    return [(key, knobs) for key, knobs in found if all(SOLVERS[key].count(n, **knobs) == n for n in STEPS)]


def winner(errors):
    """The candidate with the least mean log error; errors is {candidate: one error a problem}."""
    return min(errors, key=lambda candidate: sum(map(math.log, errors[candidate])))


def choose(found):
    """Rows of auto.json; found is {(kind, steps): {candidate number: [error, ...]}}. A choice that repeats takes no row."""
    everyone, rows = candidates(), {}
    for (kind, steps), errors in sorted(found.items()):
        key, knobs = everyone[winner(errors)]
        row = {"steps": steps, "solver": key, "knobs": knobs}
        earlier = rows.setdefault(kind, [])
        if not earlier or (earlier[-1]["solver"], earlier[-1]["knobs"]) != (key, knobs):
            earlier.append(row)
    return rows


def measure(reference, pictures, steps=STEPS):
    """{(kind, steps): {candidate number: [error of each problem]}}."""
    found = {}
    for name, task, expected in problems(reference, pictures):
        kind = "flow" if "flow" in name or "dit" in name else "ve"
        for number, (key, knobs) in enumerate(candidates()):
            sampler = hosted.method(key, **knobs)
            for count in steps:
                error = relative_error(task.sample(sampler, task.sigmas(count)), expected)
                found.setdefault((kind, count), {}).setdefault(number, []).append(error)
        print(f"{name}: done", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=int, default=500, help="steps of heun that stand for the exact answer")
    parser.add_argument("--pictures", type=int, default=2, help="of each bundled model")
    options = parser.parse_args()
    rows = choose(measure(options.reference, options.pictures))
    FILE.write_text(json.dumps(rows, indent=1) + "\n")
    print(FILE.read_text())


if __name__ == "__main__":
    main()
