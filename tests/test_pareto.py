"""What a sweep says of its points: errors with known values, the front against another algorithm, sheets pixel by pixel."""

import json
import random

import pytest
import torch
from comfyui_distillery.measure import pareto
from comfyui_distillery.measure.pareto import Point, Sweep, contact_sheet, draw, error_of, non_dominated, rows_of, table


def front_by_sorting(costs, errors):
    """From the cheapest on, a point is on the front if its error is below all cheaper ones'."""
    on_front, lowest = set(), float("inf")
    for cost, error in sorted(set(zip(costs, errors))):
        if error < lowest:
            on_front.add((cost, error))
            lowest = error
    return [point in on_front for point in zip(costs, errors)]


@pytest.mark.parametrize("span", [3, 10, 1000])  # few values: many ties
def test_the_front_is_what_sorting_finds(span):
    rng = random.Random(span)
    for _ in range(200):
        costs, errors = ([rng.randrange(span) for _ in range(rng.randrange(1, 30))] for _ in range(2))
        count = min(len(costs), len(errors))
        costs, errors = costs[:count], errors[:count]
        assert non_dominated(costs, errors) == front_by_sorting(costs, errors)


def test_equal_points_do_not_beat_each_other():
    assert non_dominated([1, 1, 2], [5, 5, 5]) == [True, True, False]


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [pareto.RELATIVE, *pareto.ERRORS])
def test_errors_of_equal_pictures_are_0(name):
    reference = images(2, 16, 16, 3)
    assert error_of(name, reference, reference.clone(), pictures=True) == 0


def test_errors_with_known_values():
    latent = images(2, 4, 8, 8)
    assert error_of("relative error", latent, latent * 1.1, pictures=False) == pytest.approx(0.1, rel=1e-5)
    grey = torch.full((1, 16, 16, 3), 0.25)
    assert error_of("mean difference", grey, grey + 0.5, pictures=True) == pytest.approx(0.5)


def test_errors_of_pictures_are_refused_for_latents():
    with pytest.raises(ValueError, match="error is '1 - SSIM', which is for pictures.*choose 'relative error'"):
        error_of("1 - SSIM", images(1, 4, 8, 8), images(1, 4, 8, 8), pictures=False)


def swept(settings, pictures=True):
    """Points whose error falls as they cost more, but for the last, which costs most and errs most."""
    reference = images(1, 24, 32, 3)
    sweep = Sweep(reference, pictures)
    for i, setting in enumerate(settings):
        error = 0.5 / (i + 1) if i < len(settings) - 1 else 0.6
        sweep.points.append(Point(setting, reference * (1 - error), 2 * i + 2, i + 1, [i + 3.0, i + 1.0, i + 2.0]))
    return sweep


def test_rows_are_medians_and_fronts_and_json():
    rows = rows_of(swept([{"Sampler.steps": steps} for steps in (1, 2, 3)]), "relative error")
    assert [row["seconds"] for row in rows] == [2, 3, 4]
    assert [row["error"] for row in rows] == pytest.approx([0.5, 0.25, 0.6], rel=1e-5)
    assert [row["non_dominated"] for row in rows] == [{"seconds": on, "evaluations": on} for on in (True, True, False)]
    assert [row["label"] for row in rows] == ["steps 1", "steps 2", "steps 3"]
    assert json.loads(json.dumps(rows)) == rows


def test_the_table_has_a_line_a_setting():
    settings = [{"A.b.method": method, "B.steps": steps} for method in ("heun", "euler") for steps in (4, 8)]
    lines = table(rows_of(swept(settings), "relative error"), "relative error").splitlines()
    assert lines[0].split() == ["A.b.method", "B.steps", "evaluations", "seconds", "relative", "error", "non-dominated", "by"]
    assert lines[1].split() == ["heun", "4", "2", "2.000", "0.5", "seconds", "and", "evaluations"]
    assert lines[4].split() == ["euler", "8", "8", "5.000", "0.6", "-"]


@pytest.mark.parametrize("counts", [(1,), (5,), (2, 3), (1, 1)])
def test_the_sheet_holds_every_picture_unchanged(counts):
    first, *second = (range(count) for count in counts)
    settings = [{"a.x": i, "b.y": j} for i in first for j in second[0]] if second else [{"a.x": i} for i in first]
    sweep = swept(settings)
    sheet = contact_sheet(sweep, rows_of(sweep, "relative error"))[0]
    for picture in [sweep.reference, *(point.result for point in sweep.points)]:
        rounded = (picture[0] * 255).round() / 255
        corners = ((sheet - rounded[0, 0]).abs().amax(-1) < 1e-6).nonzero().tolist()
        patches = [sheet[y : y + 24, x : x + 32] for y, x in corners]
        assert any(patch.shape == rounded.shape and torch.allclose(patch, rounded, atol=1e-6) for patch in patches)


def test_with_two_inputs_a_line_of_the_sheet_is_one_value_of_the_first():
    points = swept([{"a.x": x, "b.y": y} for x in (1, 2) for y in (1, 2, 3)]).points
    assert pareto.sheet_places(points) == [(0, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("errors", [(0.5, 0.25), (0.5, 0.0)])
def test_the_plot_shows_every_point(errors):
    """More points draw more ink, also when an error of 0 rules out a logarithmic axis."""
    rows = [
        {"label": f"steps {i}", "seconds": i + 1.0, "evaluations": 2 * i, "error": error,
         "non_dominated": {"seconds": True, "evaluations": True}}
        for i, error in enumerate(errors)
    ]  # fmt: skip
    one, both = draw(rows[:1], "relative error"), draw(rows, "relative error")
    assert both.shape == (1, 420, 1100, 3)
    blue = [((picture[..., 2] - picture[..., 0]) > 0.3).sum() for picture in (one, both)]
    assert blue[1] > blue[0] > 0
