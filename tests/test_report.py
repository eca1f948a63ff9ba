"""The run report, on runs whose rows are known."""

import csv
import io
import itertools

import pytest
from comfyui_distillery.measure.report import Report, summary, to_csv


@pytest.fixture
def report():
    return Report()


def start(report, sigmas, prompt="a"):
    """A recorder whose clock moves one second a look."""
    return report.begin(prompt, sigmas, ("cond", "uncond"), itertools.count().__next__)


def predict(recorder, *calls):
    recorder.prediction_started()
    for branches in calls:
        recorder.called(branches)


def test_second_stages_belong_to_the_step_they_finish(report):
    recorder = start(report, [4.0, 2.0, 0.0])
    predict(recorder, [0, 1])
    recorder.step_started(0)
    predict(recorder, [0, 1])  # Heun's second stage of step 0
    predict(recorder, [0, 1])
    recorder.step_started(1)
    recorder.end(True)
    (run,) = report.runs
    assert [(row["step"], row["sigma"], row["calls"]) for row in run["steps"]] == [(0, 4.0, 2), (1, 2.0, 1)]
    assert [row["evaluations"] for row in run["steps"]] == [{"cond": 2, "uncond": 2}, {"cond": 1, "uncond": 1}]
    # Looks at the clock: predictions 0, 1, 2, end 3.
    assert [row["seconds"] for row in run["steps"]] == [2, 1]
    assert run["totals"] == {"steps": 2, "calls": 3, "evaluations": 6, "branches": {"cond": 3, "uncond": 3}, "seconds": 3}
    assert run["complete"]


def test_conditions_run_one_by_one_are_more_calls_and_as_many_evaluations(report):
    recorder = start(report, [1.0, 0.0])
    predict(recorder, [1], [0], [2])
    recorder.step_started(0)
    recorder.end(True)
    assert report.runs[0]["totals"]["branches"] == {"cond": 1, "cond 2": 1, "uncond": 1}
    assert report.runs[0]["totals"]["calls"] == 3


def test_a_step_that_a_cache_answered_is_a_row_without_evaluations(report):
    recorder = start(report, [3.0, 2.0, 1.0, 0.0])
    for step in range(3):
        if step != 1:
            predict(recorder, [0])
        recorder.step_started(step)
    recorder.end(True)
    assert [(row["step"], row["calls"]) for row in report.runs[0]["steps"]] == [(0, 1), (1, 0), (2, 1)]


def test_predictions_before_the_first_announced_step_belong_to_it(report):
    recorder = start(report, [3.0, 0.0])
    for _ in range(2):  # dpm_adaptive tries a step before it takes one
        predict(recorder, [0, 1])
    recorder.step_started(0)
    recorder.end(True)
    assert [(row["step"], row["calls"], row["seconds"]) for row in report.runs[0]["steps"]] == [(0, 2, 2)]


def test_runs_of_one_prompt_stay_together_and_the_next_prompt_starts_afresh(report):
    for prompt, runs in (("a", 1), ("a", 2), ("b", 1)):
        start(report, [1.0, 0.0], prompt).end(True)
        assert len(report.runs) == runs


def test_the_summary_says_what_was_done_and_whether_it_ended(report):
    recorder = start(report, [2.0, 1.0, 0.0])
    predict(recorder, [1, 0])
    recorder.step_started(0)
    recorder.end(False)
    assert summary(report.runs) == "1 steps, 2 model evaluations (1 cond, 1 uncond) in 1 calls, 1.00 s (stopped early)"


def test_the_summary_tells_peak_memory_and_skipped_evaluations_where_there_are_any(report):
    recorder = start(report, [2.0, 1.0, 0.0])
    predict(recorder, [1, 0])
    recorder.step_started(0)
    recorder.step_started(1)
    for condition in (0, 1):
        recorder.note(condition, skipped=1)
    recorder.end(True, peak_memory=3 * 2**29)
    assert report.runs[0]["steps"][1]["skipped"] == {"cond": 1, "uncond": 1}
    assert report.runs[0]["totals"]["peak_memory"] == 3 * 2**29
    assert summary(report.runs) == (
        "2 steps, 2 model evaluations (1 cond, 1 uncond) in 1 calls, 2 skipped (50% saved), 2.00 s, peak 1.50 GiB"
    )


def test_some_items_of_a_batch_are_that_share_of_an_evaluation(report):
    recorder = report.begin("a", [2.0, 1.0, 0.0], ("cond", "uncond"), itertools.count().__next__, items=4)
    for step, items in enumerate((4, 1)):
        recorder.prediction_started()
        recorder.called([0], 4)
        recorder.called([1], items)
        recorder.note(1, (4 - items) / 4, "drop", "they agree", {"similarity": 0.5 + step / 4})
        recorder.step_started(step)
    recorder.end(True)
    (run,) = report.runs
    assert run["totals"]["branches"] == {"cond": 2, "uncond": 1.25} and run["totals"]["evaluations"] == 3.25
    assert "skipped" not in run["steps"][0] and run["steps"][1]["skipped"] == {"uncond": 0.75}
    assert [row["values"]["similarity"] for row in run["steps"]] == [0.5, 0.75]
    assert (run["steps"][1]["decision"], run["steps"][1]["reason"]) == ("drop", "they agree")
    assert "3.25 model evaluations (2 cond, 1.25 uncond) in 4 calls, 0.75 skipped (19% saved)" in summary(report.runs)
    assert to_csv(report.runs).splitlines()[0].endswith("skipped uncond,values similarity,decision,reason")


def test_blocks_are_counted_over_all_conditions_and_told_as_a_share(report):
    recorder = start(report, [2.0, 1.0, 0.0])
    for step, blocks in enumerate(((12, 0), (3, 9))):
        predict(recorder, [1, 0])
        for condition in (0, 1):
            recorder.note(condition, decision="run", blocks=blocks)
        recorder.step_started(step)
    recorder.end(True)
    assert [row["blocks"] for row in report.runs[0]["steps"]] == [{"done": 24}, {"done": 6, "skipped": 18}]
    assert "in 2 calls, 38% of blocks skipped, " in summary(report.runs)


def test_a_parallel_solver_s_larger_batch_is_one_evaluation(report):
    recorder = report.begin("a", [1.0, 0.0], ("cond",), itertools.count().__next__, items=2)
    recorder.prediction_started()
    recorder.called([0], 8)
    recorder.end(True)
    assert report.runs[0]["totals"]["evaluations"] == 1


def test_without_runs_the_summary_says_what_to_connect(report):
    assert "sample with the MODEL that comes out of Trace" in summary(report.runs)


def test_csv_has_every_number_of_every_row_of_every_run(report):
    for _ in range(2):
        recorder = start(report, [2.0, 1.0, 0.0])
        predict(recorder, [1, 0])
        recorder.step_started(0)
        recorder.step_started(1)
        recorder.end(True)
    report.runs[1]["steps"][1] |= {
        "skipped": {"uncond": 1}, "blocks": {"done": 3, "skipped": 5}, "decision": "reuse", "reason": 'change 0.03, "low"',
    }  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(to_csv(report.runs))))
    assert [(line["run"], line["step"], line["sigma"]) for line in lines] == [
        (run, step, sigma) for run in "12" for step, sigma in (("0", "2.0"), ("1", "1.0"))
    ]
    assert [float(line["seconds"]) for line in lines] == [1, 1, 1, 1]
    assert [line["evaluations cond"] + line["evaluations uncond"] for line in lines] == ["11", "00", "11", "00"]
    last = lines[-1]
    assert (last["skipped uncond"], last["blocks done"], last["blocks skipped"]) == ("1", "3", "5")
    assert (last["decision"], last["reason"]) == ("reuse", 'change 0.03, "low"')
    assert not lines[0]["decision"] and lines[0]["blocks done"] == "0"
