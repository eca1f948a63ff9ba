"""How a training step is measured: seconds on a clock that is known, memory of allocations that are known."""

import pytest
import torch

from bench import distill


def test_a_step_costs_what_a_longer_run_takes_longer():
    now = [0.0]

    def train(steps):
        now[0] += 30.0 + 0.25 * steps  # setting up, and the steps

    assert distill.seconds_a_step(train, lambda: now[0]) == pytest.approx(0.25)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counted on the GPU there")
def test_peak_memory_is_the_most_that_was_held_at_once():
    def work():
        kept = torch.ones(2**20)  # 4 MiB
        passing = torch.ones(2**21)  # 8 MiB more
        del passing
        return kept + torch.ones(2**18)[0]  # 1 MiB, and 4 for the sum

    assert distill.peak_bytes(work) == pytest.approx(12 * 2**20, rel=0.01)


def test_the_words_name_each_rival_and_the_drawing_leaves_ourselves_out():
    def row(beside, ratio, memory):
        return {"batch": 4, "beside": beside, "seconds": 1.0, "ratio": ratio, "low": ratio, "high": ratio, "MiB": 1.0, "memory ratio": memory}

    result = distill.result_of([row("distillery", 1.0, 1.0), row("PEFT loop", 0.9, 0.8)])
    assert "batch 4: 0.90 times the seconds and 0.80 times the memory of PEFT loop" in result.question
    assert [row["beside"] for row in result.drawn] == ["PEFT loop"]
