"""The record of sampling runs: one row per step, and totals. Plain dicts, ready for JSON.

An evaluation is the network applied to one condition (positive, negative, ...) at one noise level, for the whole batch;
a call may hold several evaluations, because ComfyUI runs conditions of the same shape in one batch. For some items of the batch
alone it is that share of an evaluation. A parallel solver's
evaluation is of several noise levels at once, its round; steps that a round settles beside the first have no evaluation.

A run is {"steps": rows, "totals": totals, "complete": whether it ran to its end}. Each row has

    step, sigma     which step of the schedule, counted from 0, and its noise level; None beyond the schedule
    calls           how often the network was called
    evaluations     {branch: how many}; a branch is "cond", "uncond", or "cond 0", "cond 1", ...
    seconds         from its first prediction to that of the next row

and, from an accelerator, any of

    skipped         {branch: evaluations answered without the network}
    blocks          {"done": how many, "skipped": how many} blocks of the network, over all evaluations of the row
    decision        one word: what the accelerator chose here, such as "run", "reuse" or "forecast"
    reason          why, in words: "change 0.03 is below 0.10"
    values          {name: a number it measured here}, such as the similarity of two predictions

The totals are steps, calls, evaluations, branches ({branch: evaluations}), seconds and, where the device counts it,
peak_memory: the most bytes that torch held at once during the run, weights included; of a cache also kept_memory: the most
bytes that it held for later steps.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Prediction:
    """One model evaluation of the solver: when it began, which step it opens if any, and what became of it."""

    when: float
    step: int | None = None
    calls: int = 0
    evaluations: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    blocks: Counter = field(default_factory=Counter)
    told: dict = field(default_factory=dict)  # decision, reason, values


class Recorder:
    """One run as it happens. Kept for that run only; what remains is the dict that ``end`` fills.

    branches names ComfyUI's conditions by number; one that has no name is "cond 0", "cond 1" and so on. items is the number of
    latents in the batch.
    """

    def __init__(self, sigmas, branches, clock, items=1):
        self.sigmas, self.branches, self.clock, self.items = sigmas, branches, clock, items
        self.predictions, self.kept_memory = [], None
        self.run = {"steps": [], "totals": {}, "complete": False}

    def prediction_started(self):
        self.predictions.append(Prediction(self.clock()))

    def called(self, conditions, items=None):
        """The network was called for these conditions, each with so many latents; None: the whole batch."""
        whole = items is None or items >= self.items  # a parallel solver's batch holds several noise levels
        self.predictions[-1].calls += 1
        for condition in conditions:
            self.predictions[-1].evaluations[self.branch(condition)] += 1 if whole else items / self.items

    def note(self, condition, skipped=0, decision="", reason="", values=None, blocks=(0, 0)):
        """An accelerator's word on this condition: the share of an evaluation that it saved, blocks done and skipped, and why."""
        prediction = self.predictions[-1]
        prediction.blocks.update(done=blocks[0], skipped=blocks[1])
        if skipped:
            prediction.skipped[self.branch(condition)] += skipped
        told = {"decision": decision, "reason": reason}
        prediction.told |= {key: word for key, word in told.items() if word}
        if values:
            prediction.told.setdefault("values", {}).update(values)

    def holds(self, kept_memory):
        """A cache holds at most so many bytes until now."""
        self.kept_memory = kept_memory

    def branch(self, condition):
        return self.branches[condition] if condition < len(self.branches) else f"cond {condition}"

    def step_started(self, step):
        """Solvers announce a step after its first prediction, so the latest one opens it."""
        if not self.predictions or self.predictions[-1].step is not None:
            self.prediction_started()  # a cache answered for the network
        self.predictions[-1].step = step

    def end(self, completed, peak_memory=None):
        """Seconds count from the first prediction, so loading the model is not among them. peak_memory in bytes, if known."""
        now = self.clock()
        rows, waiting = [], []
        for prediction in self.predictions:
            waiting.append(prediction)
            if prediction.step is not None or rows:  # what precedes the first announced step is part of it
                self.add(rows, waiting)
                waiting = []
        if waiting:
            self.add(rows, waiting)
        stops = [row["start"] for row in rows[1:]] + [now]
        for row, stop in zip(rows, stops):
            row["seconds"] = stop - row.pop("start")
            for key in ("evaluations", "skipped", "blocks"):
                if key in row:
                    row[key] = dict(sorted(row[key].items()))
        branches = sum((prediction.evaluations for prediction in self.predictions), Counter())
        self.run["steps"] = rows
        self.run["totals"] = {
            "steps": len(rows),
            "calls": sum(row["calls"] for row in rows),
            "evaluations": branches.total(),
            "branches": dict(sorted(branches.items())),
            "seconds": sum(row["seconds"] for row in rows),
        }
        if peak_memory is not None:
            self.run["totals"]["peak_memory"] = peak_memory
        if self.kept_memory is not None:
            self.run["totals"]["kept_memory"] = self.kept_memory
        self.run["complete"] = completed

    def add(self, rows, predictions):
        """Count predictions in: to a new row if the last of them opens a step, or nothing is open yet."""
        step = predictions[-1].step
        if step is not None or not rows:
            step = step or 0
            sigma = self.sigmas[step] if step < len(self.sigmas) else None  # an adaptive solver takes steps of its own
            started = {"calls": 0, "evaluations": Counter(), "start": predictions[0].when}
            rows.append({"step": step, "sigma": sigma, **started})
        row = rows[-1]
        for prediction in predictions:
            row["calls"] += prediction.calls
            row["evaluations"] += prediction.evaluations
            for key, counted in (("skipped", prediction.skipped), ("blocks", prediction.blocks)):
                if counted.total():
                    row[key] = row.get(key, Counter()) + counted
            row |= prediction.told


class Report:
    """The runs of one queued workflow, oldest first. A new prompt starts afresh."""

    def __init__(self):
        self.prompt, self.runs = None, []

    def begin(self, prompt, sigmas, branches, clock, items=1):
        if prompt is None or prompt != self.prompt:
            self.prompt, self.runs = prompt, []
        recorder = Recorder(sigmas, branches, clock, items)
        self.runs.append(recorder.run)
        return recorder


NOTHING_RAN = "No sampling run was recorded: sample with the MODEL that comes out of Trace."


def summary(runs):
    """The totals in words, one line a run."""
    lines = []
    for run in runs:
        total = run["totals"]
        branches = ", ".join(f"{count:g} {name}" for name, count in total["branches"].items())
        skipped = sum(sum(row.get("skipped", {}).values()) for row in run["steps"])
        done, left_out = (sum(row.get("blocks", {}).get(key, 0) for row in run["steps"]) for key in ("done", "skipped"))
        lines.append(
            f"{total['steps']} steps, {total['evaluations']:g} model evaluations ({branches}) in {total['calls']} calls"
            + (f", {skipped:g} skipped ({skipped / (skipped + total['evaluations']):.0%} saved)" if skipped else "")
            + (f", {left_out / (done + left_out):.0%} of blocks skipped" if left_out else "")
            + f", {total['seconds']:.2f} s"
            + (f", peak {total['peak_memory'] / 2**30:.2f} GiB" if "peak_memory" in total else "")
            + (f", {total['kept_memory'] / 2**20:.1f} MiB kept for later steps" if "kept_memory" in total else "")
            + ("" if run["complete"] else " (stopped early)")
        )
    return "\n".join(lines) or NOTHING_RAN


def names_of(rows, key):
    """The branches, or other names, that the rows count under ``key``, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.get(key, ())))


def to_csv(runs):
    """All rows of all runs as CSV text with a header; runs count from 1. Counts are one column a name: "evaluations cond"."""
    rows = [row for run in runs for row in run["steps"]]
    counts = [(key, name) for key in ("evaluations", "skipped", "blocks", "values") for name in names_of(rows, key)]
    words = [key for key in ("decision", "reason") if any(key in row for row in rows)]
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    plain = ["step", "sigma", "calls", "seconds"]
    table.writerow(["run", *plain, *(f"{key} {name}" for key, name in counts), *words])
    for number, run in enumerate(runs, 1):
        for row in run["steps"]:
            numbers = [row.get(key, {}).get(name, "" if key == "values" else 0) for key, name in counts]
            table.writerow([number, *(row[key] for key in plain), *numbers, *(row.get(key) for key in words)])
    return text.getvalue()
