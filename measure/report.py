"""The record of sampling runs: one row per step, and totals. Plain dicts, ready for JSON.

An evaluation is the network applied to one condition (positive, negative, ...) at one noise level, for the whole batch;
a call may hold several evaluations, because ComfyUI runs conditions of the same shape in one batch.
"""

from collections import Counter

BRANCHES = {0: "cond", 1: "uncond"}


class Recorder:
    """One run as it happens. Kept for that run only; what remains is the dict that ``end`` fills."""

    def __init__(self, sigmas, clock):
        self.sigmas, self.clock, self.began = sigmas, clock, clock()
        self.predictions = []  # one per model evaluation of the solver: [step or None, when, calls, branches]
        self.run = {"steps": [], "totals": {}, "complete": False}

    def prediction_started(self):
        self.predictions.append([None, self.clock(), 0, Counter()])

    def called(self, branches):
        prediction = self.predictions[-1]
        prediction[2] += 1
        prediction[3].update(BRANCHES.get(branch, f"cond {branch}") for branch in branches)

    def step_started(self, step):
        """Solvers announce a step after its first prediction, so the latest one opens it."""
        if not self.predictions or self.predictions[-1][0] is not None:
            self.prediction_started()  # a cache answered for the network
        self.predictions[-1][0] = step

    def end(self, completed):
        now = self.clock()
        rows, starts = [], []
        for step, when, calls, branches in self.predictions:
            if step is not None or not rows:
                step = step or 0
                sigma = self.sigmas[step] if step < len(self.sigmas) else None  # an adaptive solver takes steps of its own
                rows.append({"step": step, "sigma": sigma, "calls": 0, "evaluations": Counter()})
                starts.append(when)
            rows[-1]["calls"] += calls
            rows[-1]["evaluations"] += branches
        for row, start, stop in zip(rows, starts, [*starts[1:], now]):
            row["seconds"] = stop - start
            row["evaluations"] = dict(sorted(row["evaluations"].items()))
        branches = sum((prediction[3] for prediction in self.predictions), Counter())
        self.run["steps"] = rows
        self.run["totals"] = {
            "steps": len(rows),
            "calls": sum(row["calls"] for row in rows),
            "evaluations": branches.total(),
            "branches": dict(sorted(branches.items())),
            "seconds": now - self.began,
        }
        self.run["complete"] = completed


class Report:
    """The runs of one queued workflow, oldest first. A new prompt starts afresh."""

    def __init__(self):
        self.prompt, self.runs = None, []

    def begin(self, prompt, sigmas, clock):
        if prompt is None or prompt != self.prompt:
            self.prompt, self.runs = prompt, []
        recorder = Recorder(sigmas, clock)
        self.runs.append(recorder.run)
        return recorder


def summary(runs):
    """The totals in words, one line a run."""
    lines = []
    for run in runs:
        total = run["totals"]
        branches = ", ".join(f"{count} {name}" for name, count in total["branches"].items())
        lines.append(
            f"{total['steps']} steps, {total['evaluations']} model evaluations ({branches}) in {total['calls']} calls, "
            f"{total['seconds']:.2f} s" + ("" if run["complete"] else " (stopped early)")
        )
    return "\n".join(lines)
