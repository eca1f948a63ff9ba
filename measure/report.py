"""The record of sampling runs: one row per step, and totals. Plain dicts, ready for JSON.

An evaluation is the network applied to one condition (positive, negative, ...) at one noise level, for the whole batch;
a call may hold several evaluations, because ComfyUI runs conditions of the same shape in one batch.
"""

from collections import Counter


class Recorder:
    """One run as it happens. Kept for that run only; what remains is the dict that ``end`` fills.

    branches names ComfyUI's conditions by number; one that has no name is "cond 0", "cond 1" and so on.
    """

    def __init__(self, sigmas, branches, clock):
        self.sigmas, self.branches, self.clock = sigmas, branches, clock
        self.predictions = []  # one per model evaluation of the solver: [step or None, when, calls, evaluations]
        self.run = {"steps": [], "totals": {}, "complete": False}

    def prediction_started(self):
        self.predictions.append([None, self.clock(), 0, Counter()])

    def called(self, conditions):
        prediction = self.predictions[-1]
        prediction[2] += 1
        prediction[3].update(map(self.branch, conditions))

    def branch(self, condition):
        return self.branches[condition] if condition < len(self.branches) else f"cond {condition}"

    def step_started(self, step):
        """Solvers announce a step after its first prediction, so the latest one opens it."""
        if not self.predictions or self.predictions[-1][0] is not None:
            self.prediction_started()  # a cache answered for the network
        self.predictions[-1][0] = step

    def end(self, completed):
        """Seconds count from the first prediction, so loading the model is not among them."""
        now = self.clock()
        rows, waiting = [], []
        for prediction in self.predictions:
            waiting.append(prediction)
            if prediction[0] is not None or rows:  # what precedes the first announced step is part of it
                self.add(rows, waiting)
                waiting = []
        if waiting:
            self.add(rows, waiting)
        stops = [row["start"] for row in rows[1:]] + [now]
        for row, stop in zip(rows, stops):
            row["seconds"] = stop - row.pop("start")
            row["evaluations"] = dict(sorted(row["evaluations"].items()))
        branches = sum((prediction[3] for prediction in self.predictions), Counter())
        self.run["steps"] = rows
        self.run["totals"] = {
            "steps": len(rows),
            "calls": sum(row["calls"] for row in rows),
            "evaluations": branches.total(),
            "branches": dict(sorted(branches.items())),
            "seconds": sum(row["seconds"] for row in rows),
        }
        self.run["complete"] = completed

    def add(self, rows, predictions):
        """Count predictions in: to a new row if the last of them opens a step, or nothing is open yet."""
        step, when = predictions[-1][0], predictions[0][1]
        if step is not None or not rows:
            step = step or 0
            sigma = self.sigmas[step] if step < len(self.sigmas) else None  # an adaptive solver takes steps of its own
            rows.append({"step": step, "sigma": sigma, "calls": 0, "evaluations": Counter(), "start": when})
        for _, _, calls, evaluations in predictions:
            rows[-1]["calls"] += calls
            rows[-1]["evaluations"] += evaluations


class Report:
    """The runs of one queued workflow, oldest first. A new prompt starts afresh."""

    def __init__(self):
        self.prompt, self.runs = None, []

    def begin(self, prompt, sigmas, branches, clock):
        if prompt is None or prompt != self.prompt:
            self.prompt, self.runs = prompt, []
        recorder = Recorder(sigmas, branches, clock)
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
