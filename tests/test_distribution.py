"""Distances between sets, against closed forms, plain loops, and torchmetrics and scipy on the same features."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from comfyui_distillery.measure.distribution import (
    ROWS,
    at_infinity,
    every_metric,
    fid,
    fid_infinity,
    inception_score,
    is_infinity,
    kid,
    prdc,
)

from tools.launch import apply_shims

apply_shims()  # torchmetrics imports torchvision, whose compiled parts the CPU build of torch may not load


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(n, mean, covariance, seed=0):
    """Features whose sample mean and unbiased sample covariance are exactly these."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def covariance(d, seed):
    x = normal(2 * d, d, seed)
    return x.T @ x / (2 * d)


class Identity(torch.nn.Module):
    num_features = 8

    def forward(self, features):
        return features


# FID


def test_fid_of_gaussians_along_the_axes_is_the_closed_form():
    a, b = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.01]).double()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    found = fid(gaussian(50, torch.zeros(3).double(), torch.diag(a)), gaussian(70, shift, torch.diag(b), seed=1))
    assert found == pytest.approx(float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()), rel=1e-9)


def test_fid_of_any_gaussians_is_scipys():
    c, c2, shift = covariance(12, 1), covariance(12, 2), normal(1, 12, 3)[0]
    root = scipy.linalg.sqrtm((c @ c2).numpy()).real
    truth = float(shift.square().sum()) + np.trace(c.numpy() + c2.numpy() - 2 * root)
    assert fid(gaussian(60, torch.zeros(12).double(), c), gaussian(60, shift, c2, seed=5)) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("counts", [(300, 200), (300, 5), (6, 5)], ids=["plenty", "one singular", "both singular"])
def test_fid_is_torchmetrics(counts):
    from torchmetrics.image.fid import FrechetInceptionDistance

    reference, generated = normal(counts[0], 8), 1.5 * normal(counts[1], 8, 1) @ covariance(8, 2) + 0.3
    other = FrechetInceptionDistance(Identity())
    other.update(reference, real=True)
    other.update(generated, real=False)
    assert fid(reference, generated) == pytest.approx(float(other.compute()), rel=1e-5)
    assert fid(reference.float(), generated.float()) == pytest.approx(float(other.compute()), rel=1e-5)


def test_fid_of_two_pictures_each_is_the_closed_form_of_rank_one_covariances():
    a, b = normal(2, 20)
    mean = normal(1, 20, 1)[0]
    # Covariances 2 a a^T and 2 b b^T: the root of their product has the trace 2 |a.b|.
    truth = mean @ mean + 2 * (a @ a) + 2 * (b @ b) - 4 * (a @ b).abs()
    assert fid(torch.stack((a, -a)), torch.stack((mean + b, mean - b))) == pytest.approx(float(truth), rel=1e-12)


def test_fid_does_not_change_when_features_are_turned_into_more_dimensions():
    """What makes it well defined where pictures are fewer than features."""
    reference, generated = normal(30, 6), 2 * normal(40, 6, 1)
    turn = torch.linalg.qr(normal(100, 6, 2)).Q.T
    assert fid(reference @ turn, generated @ turn) == pytest.approx(fid(reference, generated), rel=1e-10)


@pytest.mark.parametrize("n", [10, 200])
def test_fid_of_a_set_to_itself_is_0(n):
    features = normal(n, 50)
    assert fid(features, features.flip(0)) < 1e-10


# At infinity


def test_the_value_at_infinity_is_the_intercept_in_one_over_n():
    assert at_infinity(lambda rows: 3 + 7 / len(rows), torch.zeros(500), 50, 15, 0) == pytest.approx(3, rel=1e-10)


def test_fid_infinity_is_the_truth_where_fid_is_biased():
    c, mean = covariance(32, 1), torch.zeros(32).double()
    reference = gaussian(400, mean, torch.eye(32).double())  # exact, so only ``generated`` has a bias
    truth = fid(reference, gaussian(400, mean, c))
    bias, rest = [], []
    for seed in range(8):
        generated = normal(4000, 32, 10 + seed) @ torch.linalg.cholesky(c).T
        bias.append(fid(reference, generated[:400]) - truth)
        rest.append(fid_infinity(reference, generated, smallest=400) - truth)
    assert np.mean(bias) > 0.5
    assert abs(np.mean(rest)) < 0.15 * np.mean(bias)
    assert fid_infinity(reference, generated, smallest=400) - truth == rest[-1], "the same subsets every time"


def test_is_infinity_is_the_truth_where_the_inception_score_is_biased():
    """Each picture surely of one of 50 classes, drawn evenly: the score is 50."""
    labels = torch.randint(50, (4000,), generator=torch.Generator().manual_seed(0))
    probabilities = torch.nn.functional.one_hot(labels, 50).double()
    assert 50 - inception_score(probabilities[:400]) > 2
    assert is_infinity(probabilities, smallest=400) == pytest.approx(50, abs=0.3)


# KID


def test_kid_is_torchmetrics_on_all_pictures_at_once():
    from torchmetrics.image.kid import KernelInceptionDistance

    reference, generated = normal(600, 8), 1.2 * normal(600, 8, 1) + 0.1  # more than a block of rows
    other = KernelInceptionDistance(Identity(), subsets=1, subset_size=600)
    other.update(reference, real=True)
    other.update(generated, real=False)
    assert kid(reference, generated) == pytest.approx(float(other.compute()[0]), rel=1e-9)


def test_kid_of_sets_of_different_counts_is_the_definition():
    x, y = normal(7, 3), normal(4, 3, 1) + 1

    def k(a, b):
        return float((a @ b / 3 + 1) ** 3)

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    assert kid(x, y) == pytest.approx(xx + yy - 2 * np.mean([k(a, b) for a in x for b in y]), rel=1e-12)


def test_kid_of_one_distribution_is_0_on_average_however_few_the_pictures():
    values = [kid(normal(5, 4, 2 * seed), normal(5, 4, 2 * seed + 1)) for seed in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < max(values)


# Inception score


def test_inception_score_is_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    logits = 3 * normal(200, 8)
    other = InceptionScore(Identity(), splits=1)
    other.update(logits)
    assert inception_score(logits.softmax(-1)) == pytest.approx(float(other.compute()[0]), rel=1e-9)


def test_inception_score_goes_from_1_to_the_number_of_classes():
    assert inception_score(torch.eye(7).repeat(3, 1)) == pytest.approx(7)
    assert inception_score(torch.eye(7)[:1].repeat(21, 1)) == pytest.approx(1)
    assert inception_score(torch.full((21, 7), 1 / 7)) == pytest.approx(1)


# Precision, recall, density, coverage


def by_definition(reference, generated, k):
    """Naeem et al. 2020, section 2.2 and 3.1, in plain loops."""
    real, fake = reference.numpy(), generated.numpy()

    def reach(points):
        return [sorted(np.linalg.norm(points - point, axis=1))[k] for point in points]

    real_reach, fake_reach = reach(real), reach(fake)
    held = [[np.linalg.norm(x - y) < r for y in fake] for x, r in zip(real, real_reach)]
    back = [[np.linalg.norm(x - y) < r for y, r in zip(fake, fake_reach)] for x in real]
    return {
        "precision": np.mean([any(column) for column in zip(*held)]),
        "recall": np.mean([any(row) for row in back]),
        "density": np.sum(held) / (k * len(fake)),
        "coverage": np.mean([any(row) for row in held]),
    }


def test_prdc_is_the_definition():
    reference, generated = normal(40, 3), 0.6 * normal(30, 3, 1) + 0.4
    found = prdc(reference, generated, k=3)
    assert found == pytest.approx(by_definition(reference, generated, 3))
    assert len(set(found.values())) == 4 and all(0 < value < 1.5 for value in found.values())


@pytest.mark.parametrize("n", [30, 600])
def test_prdc_of_a_set_to_itself_is_1(n):
    """Exactly: every ball holds k of its own set, its centre and k - 1 neighbours; the k-th lies on the border."""
    features = normal(n, 16)
    assert prdc(features, features) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_prdc_of_sets_far_apart_is_0():
    assert set(prdc(normal(50, 4), normal(60, 4, 1) + 100).values()) == {0}


def test_borders_of_balls_do_not_count():
    reference = torch.tensor([[0.0], [1.0]])
    assert prdc(reference, torch.tensor([[2.0], [3.0]]), k=1)["precision"] == 0  # 2 lies 1 from 1, whose ball reaches 1
    assert prdc(reference, torch.tensor([[1.99], [3.0]]), k=1)["precision"] == 0.5


def test_density_and_coverage_of_one_distribution_are_the_closed_forms():
    n, k = 800, 5
    expected = 1 - math.prod((n - j) / (2 * n - j) for j in range(1, k + 1))
    found = [prdc(normal(n, 8, 2 * seed), normal(n, 8, 2 * seed + 1), k) for seed in range(6)]
    assert np.mean([each["coverage"] for each in found]) == pytest.approx(expected, abs=0.006)
    assert np.mean([each["density"] for each in found]) == pytest.approx(1, abs=0.05)


# All of them, and bad input


def test_every_metric_says_what_is_missing_and_why():
    reference, generated = normal(20, 4), normal(30, 4, 1)
    probabilities = normal(30, 3).softmax(-1)
    all_of_them = {name: (value, why) for name, value, why in every_metric(reference, generated, probabilities, smallest=15)}
    assert {name for name, (value, _) in all_of_them.items() if value is None} == set()
    assert all_of_them["fid"][0] == fid(reference, generated) and all_of_them["kid"][0] == kid(reference, generated)
    assert all_of_them["is_infinity"][0] == is_infinity(probabilities, smallest=15)
    few = {name: why for name, value, why in every_metric(reference, generated, smallest=16) if value is None}
    assert set(few) == {"fid_infinity", "inception_score", "is_infinity"}
    assert few["fid_infinity"] == "needs at least 32 generated pictures, and there are 30"
    assert few["inception_score"] == "these features come without class probabilities"


def test_the_work_can_be_stopped_between_metrics_and_within_the_long_ones():
    reference, generated = normal(600, 4), normal(600, 4, 1)
    alone = {name: value for name, value, _ in every_metric(reference, generated, smallest=300)}
    calls, reached = [], {}
    for name, value, _ in every_metric(reference, generated, smallest=300, between=lambda: calls.append(1)):
        reached[name] = len(calls) - sum(reached.values())
        assert value == alone[name]
    points, blocks = 15, 3 * math.ceil(600 / ROWS)
    assert (reached["fid"], reached["fid_infinity"], reached["kid"]) == (1, 1 + points, 1 + blocks)
    assert reached["precision"] == blocks


GOOD = torch.arange(12.0).view(4, 3)
BAD = GOOD.clone()
BAD[2, 1] = math.nan


@pytest.mark.parametrize("metric", [fid, kid, prdc])
@pytest.mark.parametrize(
    "reference, generated, complaint",
    [
        (GOOD[:1], GOOD, "reference: 1 pictures, and this needs at least 2"),
        (GOOD, GOOD[:1], "generated: 1 pictures"),
        (GOOD, GOOD[:, :2], "generated: 2 features a picture, and reference has 3"),
        (GOOD, BAD, "generated: the features of picture 2 are NaN or infinite"),
        (GOOD / 0, GOOD, "reference: the features of picture 0 are NaN or infinite"),
        (GOOD[0], GOOD, r"reference: got shape \(3,\)"),
    ],
)
def test_bad_features_are_named(metric, reference, generated, complaint):
    with pytest.raises(ValueError, match=complaint):
        metric(reference, generated)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="k is 5, and generated holds 4 pictures.*Give k from 1 to 3"):
        prdc(normal(9, 3), GOOD)
    with pytest.raises(ValueError, match="k is 0"):
        prdc(GOOD, GOOD, k=0)
    with pytest.raises(ValueError, match="generated holds 4 pictures, and extrapolating from 5000 needs at least 10000"):
        fid_infinity(GOOD, GOOD)
    with pytest.raises(ValueError, match="smallest is 1"):
        fid_infinity(GOOD, GOOD, smallest=1)
    for wrong in (GOOD, torch.tensor([[2.0, -1.0]])):
        with pytest.raises(ValueError, match="sum to 1. Apply softmax"):
            inception_score(wrong)
