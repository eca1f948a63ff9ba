"""What goes wrong in training: memory, numbers, the disk, the keyboard. Nothing that was learnt is lost."""

import json
import os
import resource
import signal

import pytest
import torch
from comfyui_distillery.distill.checkpoints import Checkpoints, check_room
from comfyui_distillery.distill.train import Events

from .distilling import STEPS, Plain, Recorded, Stop, StopAfter, guided_recipe, guided_run, state
from .problems import assert_close


class Limited(Plain):
    """Memory for so many items."""

    limit = 2

    def __call__(self, role, x, sigma, cond, strength=1.0):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError
        return super().__call__(role, x, sigma, cond, strength)


def test_where_memory_runs_out_the_same_step_is_made_in_smaller_parts():
    whole, events = guided_run(guided_recipe(batch=5)), Recorded()
    whole.run()
    limited = guided_run(guided_recipe(batch=5), kind=Limited, events=events)
    limited.run()
    assert limited.counters.micro_batch == 2 and len(events.warnings) == 1
    assert "5 items at once" in events.warnings[0] and "again with 2" in events.warnings[0]
    for a, b in zip(state(limited)[0], state(whole)[0], strict=True):
        assert_close(a, b, 1e-9)
    assert [row["loss"] for row in events.rows] == pytest.approx([row["loss"] for row in whole.counters.history], rel=1e-12)


def test_where_not_one_item_fits_what_there_is_stays(tmp_path):
    limited = guided_run(guided_recipe(), kind=Limited, folder=tmp_path)
    limited.loss.args[0].limit = 4
    with pytest.raises(Stop):
        limited.events = StopAfter(4)
        limited.run()
    none = guided_run(guided_recipe(), kind=Limited, folder=tmp_path)
    none.loss.args[0].limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        none.run()
    assert Checkpoints(tmp_path).steps()[-1] == 4


def broken(training, steps):
    """The run with losses that are no number in these steps."""
    loss = training.loss
    training.loss = lambda batch: loss(batch) * (float("nan") if batch.draws.step in steps else 1.0)
    return training


def test_a_step_that_is_no_number_is_skipped_and_counted():
    training = broken(guided_run(guided_recipe()), {4})
    before = None

    class Watch(Events):
        def stepped(self, row):
            nonlocal before
            now = state(training)[0]
            if row["step"] == 5:
                assert row["skipped"] and row["loss"] is None
                assert all(torch.equal(a, b) for a, b in zip(before, now))
            before = now

    training.events = Watch()
    assert training.run().ended == "done"
    assert training.counters.skipped == 1 and training.counters.updates == STEPS - 1 and training.counters.slower == 1
    assert all(p.isfinite().all() for p in training.student.parameters())


def test_a_run_that_gives_no_numbers_ends_with_what_it_had(tmp_path):
    events = Recorded()
    training = broken(guided_run(guided_recipe(steps=50), folder=tmp_path, events=events), set(range(6, 50)))
    result = training.run()
    assert result.ended == "diverged" and training.counters.step == 16 and training.counters.slower == 1 / 8
    assert "10 steps in a row" in events.warnings[-1]
    until = guided_run(guided_recipe(steps=50), events=StopAfter(6))
    with pytest.raises(Stop):
        until.run()
    assert all(torch.equal(a, b) for a, b in zip(state(training)[0], state(until)[0], strict=True))
    assert json.loads((tmp_path / "state-0000016.json").read_text())["counters"]["skipped"] == 10


def test_a_full_disk_is_named_before_the_first_step(tmp_path):
    with pytest.raises(OSError, match=rf"the state needs 1,048,576 MiB in {tmp_path}"):
        check_room(tmp_path, 2**40, "the state")


def test_a_state_that_cannot_be_written_leaves_the_last_one_and_the_run(tmp_path):
    events = Recorded()
    training = guided_run(guided_recipe(), folder=tmp_path, events=events)

    class Fill(Recorded):
        def stepped(self, row):
            super().stepped(row)
            if row["step"] == 4:  # files may not grow beyond this: what a disk that fills up does to a write
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    training.events = events = Fill()
    try:
        result = training.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.ended == "done" and training.counters.step == STEPS
    assert "was not saved" in events.warnings[0] and "whole" in result.unsaved
    assert Checkpoints(tmp_path).steps() == [3] and not list(tmp_path.glob("*.part"))
    assert guided_run(guided_recipe(), folder=tmp_path).counters.step == 3


def test_the_keyboards_interruption_waits_for_the_step(tmp_path):
    training = guided_run(guided_recipe(), folder=tmp_path)
    step = training.optimiser.step

    def interrupted_step():
        if training.counters.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        step()

    training.optimiser.step = interrupted_step
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert training.counters.step == 5 and Checkpoints(tmp_path).steps()[-1] == 5
