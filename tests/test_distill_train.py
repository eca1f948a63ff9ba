"""The training loop: a step is a transaction, whatever ends it, and a run that goes on is the run that never ended."""

import copy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_distillery.distill.checkpoints import Checkpoints, save_tensors
from comfyui_distillery.distill.lora import LoraSet
from comfyui_distillery.distill.optimisers import OPTIMISERS
from comfyui_distillery.distill.recipe import Recipe
from comfyui_distillery.distill.train import Events, Training
from safetensors.torch import load_file

from .distilling import LEVELS, STEPS, Affine, Recorded, Stop, StopAfter, guided_recipe, guided_run, state

ROOT = Path(__file__).resolve().parent.parent


def assert_same_run(a, b):
    (tensors, moments, rows), (others, other_moments, other_rows) = state(a), state(b)
    assert all(torch.equal(x, y) for x, y in zip(tensors, others, strict=True))
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(moments, other_moments, strict=True))
    assert rows == other_rows


# Going on


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_interrupted_run_goes_on_bit_for_bit(name, tmp_path):
    if OPTIMISERS[name].package:
        pytest.importorskip(OPTIMISERS[name].package)
    whole = guided_run(guided_recipe(name))
    whole.run()
    with pytest.raises(Stop):
        guided_run(guided_recipe(name), folder=tmp_path, events=StopAfter(7)).run()
    assert Checkpoints(tmp_path).steps()[-1] == 7
    resumed = guided_run(guided_recipe(name), folder=tmp_path)
    result = resumed.run()
    assert result.ended == "done" and resumed.counters.step == STEPS
    assert_same_run(resumed, whole)


class Nested(torch.optim.Adam):
    """Adam that hands its moments out, and takes them back, one dict further down, as bitsandbytes' optimisers do."""

    def state_dict(self):
        whole = super().state_dict()
        return {**whole, "state": {i: {"step": each.pop("step"), "wrapped": each} for i, each in copy.deepcopy(whole["state"]).items()}}

    def load_state_dict(self, whole):
        state = {i: {"step": each["step"], **each["wrapped"]} for i, each in whole["state"].items()}
        super().load_state_dict({**whole, "state": state})


def test_state_in_dicts_within_dicts_survives(monkeypatch, tmp_path):
    kind = replace(OPTIMISERS["adamw"], make=lambda params, lr, weight_decay: Nested(params, lr=lr))
    monkeypatch.setitem(OPTIMISERS, "adamw", kind)
    whole = guided_run(guided_recipe())
    whole.run()
    with pytest.raises(Stop):
        guided_run(guided_recipe(), folder=tmp_path, events=StopAfter(7)).run()
    resumed = guided_run(guided_recipe(), folder=tmp_path)
    assert resumed.counters.step == 7 and any("wrapped.exp_avg" in name for name in Checkpoints(tmp_path).load(7)[0])
    resumed.run()
    assert_same_run(resumed, whole)


def test_moments_of_8_bits_survive_the_disk(tmp_path):
    """On layers large enough for them: bitsandbytes keeps the others' in 32 bits."""
    pytest.importorskip("bitsandbytes", reason="adamw_8bit needs it")
    layers = {"a": torch.nn.Linear(600, 520)}
    x = torch.randn(4, 600, generator=torch.Generator().manual_seed(0))

    class Data:
        def batch(self, step, items, progress):
            return x[list(items)]

    def made(**more):
        student, average = (LoraSet.create(layers, 8, generator=torch.Generator().manual_seed(0)) for _ in range(2))
        return Training(
            lambda x: (student["a"](x) - x[:, :520]).square().mean(1), Data(), student, guided_recipe("adamw_8bit"), average=average, **more
        )

    whole = made()
    whole.run()
    with pytest.raises(Stop):
        made(folder=tmp_path, events=StopAfter(7)).run()
    kept = Checkpoints(tmp_path).load(7)[0]
    assert [value.dtype for name, value in kept.items() if name.endswith(("state1", "state2"))] == [torch.uint8] * 4
    resumed = made(folder=tmp_path)
    resumed.run()
    for a, b in zip(whole.student.parameters(), resumed.student.parameters()):
        assert torch.equal(a, b)
        for name, value in whole.optimiser.state[a].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.optimiser.state[b][name])), name
    exact = made()
    exact.optimiser = OPTIMISERS["adamw"].make(exact.params, exact.recipe.lr, 0.0)
    exact.run()
    losses = [[row["loss"] for row in each.counters.history] for each in (whole, exact)]
    assert losses[0] != losses[1] and losses[0][-1] == pytest.approx(losses[1][-1], rel=0.05) and losses[0][-1] < 0.7 * losses[0][0]


def test_an_interruption_within_a_step_loses_that_step_alone(tmp_path):
    whole = guided_run(guided_recipe(steps=5))
    whole.run()
    stopped = guided_run(guided_recipe(), folder=tmp_path)
    loss, calls = stopped.loss, []

    def interrupted(batch):
        calls.append(batch)
        if len(calls) == 6:
            loss(batch).sum().backward()  # a gradient is there, and must not be used
            raise Stop
        return loss(batch)

    stopped.loss = interrupted
    with pytest.raises(Stop):
        stopped.run()
    resumed = guided_run(guided_recipe(), folder=tmp_path)
    assert resumed.counters.step == 5
    short, tensors = state(resumed), Checkpoints(tmp_path).load(5)[0]
    assert len(short[2]) == 5 and any(name.startswith("optimiser.0.") for name in tensors)
    resumed.run()
    again = guided_run(guided_recipe())
    again.run()
    assert_same_run(resumed, again)


def test_a_killed_run_goes_on_from_its_last_state(tmp_path):
    """Another process, killed by the system in the middle of a step."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import tests.conftest
from tests.distilling import Events, guided_recipe, guided_run

class Kill(Events):
    def stepped(self, row):
        if row["step"] == 8:
            os.kill(os.getpid(), signal.SIGKILL)

guided_run(guided_recipe(), folder={str(tmp_path)!r}, events=Kill()).run()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    save_tensors(tmp_path / "state-0000009.safetensors", {"student.a": torch.zeros(2)})  # as one killed before its JSON leaves
    (tmp_path / "state-0000012.safetensors.part").write_bytes(b"half")
    resumed, whole = guided_run(guided_recipe(), folder=tmp_path), guided_run(guided_recipe())
    assert resumed.counters.step == 6
    resumed.run()
    whole.run()
    assert_same_run(resumed, whole)
    names = [f"state-00000{step}.{suffix}" for step in ("09", "12") for suffix in ("json", "safetensors")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.safetensors", *names]


def test_a_finished_run_is_not_made_again_and_can_be_made_longer(tmp_path):
    guided_run(guided_recipe(), folder=tmp_path).run()
    events = Recorded()
    again = guided_run(guided_recipe(), folder=tmp_path, events=events)
    assert again.run().ended == "done" and not events.rows
    longer = guided_run(guided_recipe(steps=20), folder=tmp_path, events=events)
    longer.run()
    assert [row["step"] for row in events.rows] == list(range(13, 21))
    assert sorted(path.name for path in tmp_path.glob("state-*.json")) == ["state-0000018.json", "state-0000020.json"]


def test_going_on_with_another_recipe_or_model_is_refused_by_name(tmp_path):
    guided_run(guided_recipe(), folder=tmp_path).run()
    other = Recipe("guidance", {"scale": 5.0, "weight": "x0"}, optimiser=guided_recipe().optimiser, run=guided_recipe().run)
    with pytest.raises(ValueError, match=r"recipe.knobs.scale: was 3.0, is 5.0"):
        guided_run(other, folder=tmp_path)
    with pytest.raises(ValueError, match="model: was 'toy', is 'another'"):
        guided_run(guided_recipe(), folder=tmp_path, fingerprint="another")
    guided_run(guided_recipe(steps=30, save_every=7), folder=tmp_path)  # these may change


def test_what_is_saved_is_the_average_as_a_lora(tmp_path):
    layers = {"a.b": torch.nn.Linear(3, 2), "c": torch.nn.Linear(2, 2)}
    student, average = (LoraSet.create(layers, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    class Data:
        def batch(self, step, items, progress):
            return x[list(items)]

    def loss(x):
        return (student["a.b"](x) - 1).square().mean(1)

    training = Training(loss, Data(), student, guided_recipe(), average=average, folder=tmp_path)
    result = training.run()
    saved = load_file(tmp_path / "lora.safetensors")
    assert result.student is average and saved.keys() == average.state().keys()
    assert all(torch.equal(saved[key], value) for key, value in average.state().items())


def test_the_best_by_the_score_is_kept(tmp_path):
    scores = iter([3.0, 1.0, 2.0, float("nan")])
    training = guided_run(guided_recipe(), folder=tmp_path, score=lambda: next(scores))
    training.run()
    assert training.counters.best == {"step": 6, "score": 1.0}
    assert not torch.equal(load_file(tmp_path / "best.safetensors")["a"], load_file(tmp_path / "lora.safetensors")["a"])


def test_minutes_become_steps_after_a_few():
    events = Recorded()
    training = guided_run(guided_recipe(steps=10**6, minutes=0.005), events=events)
    result = training.run()
    assert result.ended == "time" and 5 <= training.counters.step == events.planned_steps[-1] < 10**5
    assert training.counters.history[-1]["rate"] < 0.2 * 0.02  # the schedule is that of the steps that fitted


def test_a_run_with_more_minutes_goes_on_for_as_many_steps_as_fit(tmp_path):
    first = guided_run(guided_recipe(steps=10**6, minutes=0.003), folder=tmp_path)
    first.run()
    longer = guided_run(guided_recipe(steps=10**6, minutes=0.009), folder=tmp_path)
    assert longer.counters.steps == pytest.approx(0.54 / (first.counters.seconds / first.counters.step), abs=1)
    shorter = guided_run(guided_recipe(steps=10**6, minutes=0.0001), folder=tmp_path)
    assert shorter.run().ended == "time" and shorter.counters.step == first.counters.step


def test_each_stage_takes_over_the_last_student():
    stages = []
    levels = LEVELS["flow"]
    student, previous = Affine(levels.sigma(torch.ones(1)), (2, 3, 2)), Affine(levels.sigma(torch.ones(1)), (2, 3, 2))
    training = guided_run(guided_recipe(), student=student)
    training.previous, training.stage = previous, lambda progress: int(progress * 3)

    class Watch(Events):
        def stepped(self, row):
            stages.append((row["step"], previous.a.abs().sum().item()))

    training.events = Watch()
    training.run()
    values = [value for _, value in stages]
    assert values[:4] == [0.0] * 4 and len(set(values[4:8])) == 1 and len(set(values[8:])) == 1 and len(set(values)) == 3
