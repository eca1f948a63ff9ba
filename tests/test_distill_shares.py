"""What a step's gradient and loss are made of: against sums written out, and recorded without changing what is learnt."""

import pytest
import torch
from comfyui_distillery.distill.objectives import OBJECTIVES
from comfyui_distillery.distill.shares import THIRDS, clip, of_gradient, of_loss
from comfyui_distillery.distill.train import Training

from .distilling import LEVELS, Exact, Plain, batch_of, guided_recipe, guided_run, state, two_gaussians
from .problems import assert_close, randn


def parameters(dtype=torch.float64):
    """Three with gradients of different sizes, and one without."""
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 4), (5,), (2, 2, 2), (7,))]
    for i, p in enumerate(params[:3]):
        p.grad = (10.0**i * randn(*p.shape, seed=i)).to(dtype)
    return params


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("most", [0.0, 1.0, 1e9])
def test_clipping_is_torchs_bit_for_bit(most, dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    norm, norms = clip(ours, most)
    expected = torch.nn.utils.clip_grad_norm_(theirs, most or float("inf"))
    assert norm == expected.item() and all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:3], theirs[:3]))
    assert norms == [p.grad.norm().item() for p in parameters(dtype)[:3]] + [0.0]


def test_a_gradient_that_is_no_number_is_told_of():
    params = parameters()
    params[1].grad[0] = float("nan")
    assert not torch.tensor(clip(params, 1.0)[0]).isfinite()
    assert clip([torch.nn.Parameter(torch.zeros(2))], 1.0) == (0.0, [0.0])


def test_shares_of_the_gradient_are_those_of_its_square():
    assert of_gradient({"a": [0, 2], "b": [1]}, [3.0, 4.0, 12.0]) == {"a": 153 / 169, "b": 16 / 169}
    assert of_gradient({"a": [0], "b": [1]}, [0.0, 0.0]) == {"a": 0.0, "b": 0.0}
    assert of_gradient({}, [1.0]) == {}


def test_the_loss_is_divided_by_thirds_of_the_models_time():
    """A time that two thirds share is the start of the lower one, as it is of a phase."""
    times, losses = [1e-6, 1 / 3, 0.34, 2 / 3, 0.67, 1.0], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert of_loss(times, losses, 6) == dict(zip(THIRDS, (3 / 6, 12 / 6, 48 / 6)))
    assert of_loss([0.9], [5.0], 4) == dict(zip(THIRDS, (0.0, 0.0, 5 / 4)))


class Sum(torch.nn.Module):
    """Its loss is 3 a + 4 b, whatever the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))


def test_a_run_records_them_at_each_step():
    student = Sum()

    class Data:
        def batch(self, step, items, progress):
            return torch.tensor([(1.0 + item) / 4 for item in items], dtype=torch.float64)

    def loss(times):
        return 3 * student.a + 4 * student.b - (3 * student.a + 4 * student.b).detach() + times

    parts = {"first": [student.a], "second": [student.b]}
    run = Training(loss, Data(), student, guided_recipe(steps=2, micro_batch=3), parts=parts, times=lambda times: times)
    run.run()
    for row in run.counters.history:
        assert row["gradient"] == pytest.approx(5)
        assert row["gradient_shares"] == pytest.approx({"first": 0.36, "second": 0.64})
        assert row["loss_parts"] == pytest.approx(dict(zip(THIRDS, (1 / 16, 2 / 16, 7 / 16)))) and row["loss"] == 10 / 16


def test_their_sums_are_the_whole_and_a_skipped_step_has_none():
    run = guided_run(guided_recipe())
    loss = run.loss
    run.loss = lambda batch: loss(batch) * (float("nan") if batch.draws.step == 4 else 1.0)
    run.run()
    rows = run.counters.history
    assert rows[4]["gradient_shares"] is rows[4]["loss_parts"] is None
    for row in rows[:4] + rows[5:]:
        assert sum(row["gradient_shares"].values()) == pytest.approx(1) and sum(row["loss_parts"].values()) == pytest.approx(row["loss"])
    assert len({third for row in rows if row["loss_parts"] for third, value in row["loss_parts"].items() if value}) == 3


def test_recording_changes_nothing():
    with_them, without = guided_run(guided_recipe()), guided_run(guided_recipe(), parts=None, times=None)
    with_them.run()
    without.run()
    for found, expected in zip(state(with_them)[:2], state(without)[:2]):
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(found, expected, strict=True))
    assert without.counters.history[0]["gradient_shares"] == without.counters.history[0]["loss_parts"] == {}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_times_recorded_are_those_at_which_the_student_learns(name, levels):
    seen = []

    class Watched(Plain):
        def __call__(self, role, x, sigma, cond, strength=1.0):
            if torch.is_grad_enabled():
                seen.append(sigma)
            return super().__call__(role, x, sigma, cond, strength)

    data = two_gaussians(levels.path)
    student = Exact(lambda x, sigma: 0.5 * x)
    roles = Watched(levels.path, data, {role: student for role in ("student", "ema", "previous")})
    batch = batch_of(data[1], levels, 32, progress=0.5)
    OBJECTIVES[name](roles, batch)
    (sigma,) = seen
    assert_close(batch.sigma(batch.shown[-1]), sigma, 1e-12)
