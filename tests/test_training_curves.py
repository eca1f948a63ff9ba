"""What is drawn of a training run: read back from the figure, not from its pixels."""

import math

import pytest
from comfyui_distillery.measure import training_curves


def history(losses, gradients=None, skipped=()):
    gradients = gradients or [1.0] * len(losses)
    return [
        {"step": step, "loss": loss, "gradient": gradient, "rate": 1e-3 / step, "skipped": step in skipped, "seconds": 0.5 * step}
        for step, (loss, gradient) in enumerate(zip(losses, gradients), 1)
    ]


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_every_number_of_the_run_is_drawn_at_its_step():
    rows = history([4.0, 2.0, 1.0, 3.0], [0.4, 0.3, 0.2, 0.1])
    loss, gradient, rate = training_curves.plot(rows).axes
    for axis, name in ((loss, "loss"), (gradient, "gradient"), (rate, "rate")):
        drawn = lines(axis)[name]
        assert list(drawn.get_xdata()) == [1, 2, 3, 4]
        assert list(drawn.get_ydata()) == [row[name] for row in rows]


def test_the_smoothed_loss_is_the_weighted_mean_of_all_before():
    """Against the sum written out: weights halve every 3 steps, and a step without a loss has none."""
    values = [5.0, None, 2.0, 8.0, 1.0, None]
    for last, found in enumerate(training_curves.smoothed(values, half_life=3)):
        weights = {i: 0.5 ** ((last - i) / 3) for i in range(last + 1) if values[i] is not None}
        expected = sum(weight * values[i] for i, weight in weights.items()) / sum(weights.values())
        assert found == pytest.approx(expected, rel=1e-12)
    assert training_curves.smoothed([None, 3.0], half_life=1) == [None, 3.0]
    constant = training_curves.smoothed([0.25] * 50)
    assert constant == pytest.approx([0.25] * 50)


def test_the_smoothed_loss_is_what_the_picture_shows():
    rows = history([float(i % 7 + 1) for i in range(200)])
    drawn = lines(training_curves.plot(rows).axes[0])["smoothed"]
    assert list(drawn.get_ydata()) == training_curves.smoothed([row["loss"] for row in rows])
    swing = max(drawn.get_ydata()[100:]) - min(drawn.get_ydata()[100:])
    assert swing < 3  # of 6


def test_skipped_steps_leave_a_gap_and_a_mark_in_every_panel():
    figure = training_curves.plot(history([1.0, None, 1.0, None, 1.0], [1.0, None, 1.0, 1.0, 1.0], skipped={2, 4}))
    assert [math.isnan(value) for value in lines(figure.axes[0])["loss"].get_ydata()] == [False, True, False, True, False]
    for axis in figure.axes:
        assert list(lines(axis)["skipped"].get_xdata()) == [2, 4]
    assert "skipped" not in lines(training_curves.plot(history([1.0, 1.0])).axes[0])


def test_the_best_step_is_marked_with_its_score():
    for axis in training_curves.plot(history([3.0, 2.0, 2.5]), best={"step": 2, "score": 0.125}).axes:
        (line,) = [line for label, line in lines(axis).items() if label.startswith("best")]
        assert set(line.get_xdata()) == {2} and "0.125" in line.get_label()


@pytest.mark.parametrize(
    ("losses", "scale"), [([1.0, 2.0], "linear"), ([1.0, 100.0], "log"), ([0.0, 100.0], "linear"), ([None, None], "linear")]
)  # fmt: skip
def test_wide_ranges_are_drawn_logarithmically(losses, scale):
    assert training_curves.plot(history(losses)).axes[0].get_yscale() == scale


def divided(shares, losses):
    """A history of these shares of two kinds of layer, and these losses of two thirds."""
    rows = history([1.0] * len(shares))
    for row, share, loss in zip(rows, shares, losses):
        row["gradient_shares"] = None if share is None else {"attention": share, "feed-forward": 1 - share}
        row["loss_parts"] = None if loss is None else dict(zip(("low noise", "high noise"), loss))
    return rows


def test_shares_are_of_smoothed_sums():
    """Of a step without numbers, and of one whose batch had no item there, nothing is lost: 1 + 0 + 2 against 3 + 6 + 0."""
    rows = divided([0.25] * 4, [(1.0, 3.0), None, (0.0, 6.0), (2.0, 0.0)])
    found = training_curves.shares(rows, "loss_parts")
    assert found["low noise"][:2] == pytest.approx([0.25, 0.25])
    weight = 0.5**0.5  # halves in two steps
    low, high = weight**3 * 1 + 2, weight**3 * 3 + weight * 6
    assert found["low noise"][3] == pytest.approx(low / (low + high)) and found["high noise"][3] == pytest.approx(high / (low + high))
    assert training_curves.shares(rows, "gradient_shares")["feed-forward"] == pytest.approx([0.75] * 4)
    assert training_curves.shares(divided([None, 0.5], [(0.0, 0.0)] * 2), "gradient_shares")["attention"] == [None, 0.5]
    assert training_curves.shares(divided([0.5], [(0.0, 0.0)]), "loss_parts")["low noise"] == [None]


def test_shares_have_panels_of_their_own_where_there_are_several_parts():
    rows = divided([0.2, 0.4, 0.6], [(1.0, 3.0), (2.0, 2.0), (4.0, 0.0)])
    figure = training_curves.plot(rows)
    assert [axis.get_ylabel() for axis in figure.axes[3:]] == ["share of gradient", "share of loss"]
    for axis, name in zip(figure.axes[3:], ("gradient_shares", "loss_parts")):
        for part, values in training_curves.shares(rows, name).items():
            assert list(lines(axis)[part].get_ydata()) == values
        assert axis.get_ylim() == (0, 1)
    for row in rows:
        row["gradient_shares"] = {"attention": 1.0}  # the only one that is trained: nothing to tell
    assert [axis.get_ylabel() for axis in training_curves.plot(rows).axes[3:]] == ["share of loss"]


def test_a_run_of_one_step_and_one_without_a_number_can_be_drawn():
    for losses in ([1.0], [None], [None] * 10):
        image = training_curves.draw(history(losses, skipped=set(range(1, 11))))
        assert image.shape[0] == 1 and image.isfinite().all()


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="history is empty"):
        training_curves.plot([])
