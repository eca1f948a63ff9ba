"""Distances between two sets of pictures, from features (N, D) of any network: computed in float64.

``reference`` holds the features of real or trusted pictures, ``generated`` of those to be judged; their counts may
differ, but not D. Every function raises ValueError, naming the set, where values are NaN or infinite, D differs, or a
set is too small.
"""

import numpy as np
import torch

ROWS = 64  # of pairwise matrices, held at a time


def nothing():
    """What is done in between, unless a caller has something to do then, such as to stop."""


def every_metric(reference, generated, probabilities=None, *, k=5, smallest=5000, between=nothing):
    """Each metric below in turn, as (name, value, None) or (name, None, why it is missing).

    ``probabilities``: of the generated pictures. ``between()`` is called between pieces of work of seconds at most, for
    some 10,000 pictures; what it raises ends the work.
    """
    few = unclassified = None
    if len(generated) < 2 * smallest:
        few = f"needs at least {2 * smallest} generated pictures, and there are {len(generated)}"
    if probabilities is None:
        unclassified = "these features come without class probabilities"
    for name, missing, metric in (
        ("fid", None, lambda: fid(reference, generated)),
        ("fid_infinity", few, lambda: fid_infinity(reference, generated, smallest=smallest, between=between)),
        ("kid", None, lambda: kid(reference, generated, between)),
        ("inception_score", unclassified, lambda: inception_score(probabilities)),
        ("is_infinity", unclassified or few, lambda: is_infinity(probabilities, smallest=smallest, between=between)),
    ):
        between()
        yield name, None if missing else metric(), missing
    for name, value in prdc(reference, generated, k, between).items():
        yield name, value, None


def fid(reference, generated):
    """Frechet distance of the Gaussians fitted to both sets, Heusel et al. 2017, arXiv:1706.08500, equation 6.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), with unbiased covariances. Best 0. Exact for singular covariances (fewer
    pictures than features) too. Biased upwards by about 1 / N: compare only figures of the same features and counts.
    """
    reference, generated = pair(reference, generated)
    return frechet_distance(gaussian(reference), gaussian(generated))


def gaussian(features):
    """Mean (D,) and a root R of the covariance, C = R^T R, of features (N, D). R has min(N, D) rows."""
    features = features.double()
    mean = features.mean(0)
    root = (features - mean) / (len(features) - 1) ** 0.5
    return mean, torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def frechet_distance(a, b):
    """Of two Gaussians as ``gaussian`` returns them.

    With C = R^T R and C' = S^T S, the non-zero eigenvalues of C C' are the squared singular values of R S^T; so the trace
    of (C C')^(1/2) is their sum, and no root of a matrix that may be singular is needed.
    """
    (mean_a, root_a), (mean_b, root_b) = a, b
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    squares = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum()
    return max(0.0, float(squares - 2 * overlap))


def fid_infinity(reference, generated, *, smallest=5000, points=15, seed=0, between=nothing):
    """FID as it would be with endlessly many generated pictures, Chong and Forsyth 2020, arXiv:1911.07023, algorithm 1.

    FID of random subsets at ``points`` sizes from ``smallest`` to all, fitted by a line in 1 / N; its value at 0. The bias
    of the reference's own size stays. Noise may carry it below 0. Needs at least 2 ``smallest`` generated pictures.
    """
    reference, generated = pair(reference, generated)
    real = gaussian(reference)
    return at_infinity(lambda part: frechet_distance(real, gaussian(part)), generated, smallest, points, seed, between)


def is_infinity(probabilities, *, smallest=5000, points=15, seed=0, between=nothing):
    """Inception score as it would be with endlessly many pictures: as ``fid_infinity``, from probabilities (N, classes)."""
    return at_infinity(inception_score, check_probabilities(probabilities), smallest, points, seed, between)


def at_infinity(score, rows, smallest, points, seed, between=nothing):
    if smallest < 2 or points < 2:
        raise ValueError(
            f"smallest is {smallest} and points {points}: a line needs 2 points or more, each of 2 pictures or more."
        )
    if len(rows) < 2 * smallest:
        raise ValueError(
            f"generated holds {len(rows)} pictures, and extrapolating from {smallest} needs at least {2 * smallest}. Add "
            "pictures, or lower the smallest size."
        )
    generator = torch.Generator().manual_seed(seed)
    sizes = np.linspace(smallest, len(rows), points).astype(int)
    scores = []
    for size in sizes:
        between()
        scores.append(score(rows[torch.randperm(len(rows), generator=generator)[:size]]))
    return float(np.polynomial.Polynomial.fit(1 / sizes, scores, 1).convert().coef[0])


def kid(reference, generated, between=nothing):
    """Kernel distance: unbiased squared MMD with the kernel (x.y / D + 1)^3, Binkowski et al. 2018, arXiv:1801.01401.

    Best 0; being unbiased it can fall below, and suits few pictures. Over all pairs at once: the same expectation as the
    usual mean over random subsets, with less noise.
    """
    reference, generated = pair(reference, generated)
    across = 2 * kernel(reference, generated, between) / (len(reference) * len(generated))
    return within(reference, between) + within(generated, between) - across


def blocks(rows, between):
    for part in rows.split(ROWS):
        between()
        yield part


def kernel(a, b, between):
    """The sum of the kernel over all pairs."""
    return sum(float((rows @ b.T / b.shape[1] + 1).pow(3).sum()) for rows in blocks(a, between))


def within(features, between):
    """The mean of the kernel over all pairs of different pictures of one set."""
    n, d = features.shape
    alone = float((features.square().sum(1) / d + 1).pow(3).sum())
    return (kernel(features, features, between) - alone) / (n * (n - 1))


def inception_score(probabilities):
    """exp(E KL(p(y|x) || p(y))), Salimans et al. 2016, arXiv:1606.03498, from class probabilities (N, classes), in one split.

    From 1, where pictures are unclear or all alike, to the number of classes. Higher is better.
    """
    p = check_probabilities(probabilities)
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(0))
    return float(divergence.sum(1).mean().exp())


def prdc(reference, generated, k=5, between=nothing):
    """Precision and recall, Kynkaanniemi et al. 2019, arXiv:1904.06991; density and coverage, Naeem et al. 2020, arXiv:2002.09797.

    From balls around each picture that reach to its k-th nearest neighbour in its own set, borders excluded: precision is
    the share of generated pictures in any reference ball, recall the reverse, density how many reference balls hold a
    generated picture, over k, and coverage the share of reference balls that hold one. Best 1; density can exceed it.
    Of two samples of one distribution: density 1, coverage 1 - prod_{j=1..k} (N - j) / (2 N - j) for N pictures each.
    """
    reference, generated = pair(reference, generated)
    smaller, count = min((("reference", len(reference)), ("generated", len(generated))), key=lambda entry: entry[1])
    if not 1 <= k < count:
        raise ValueError(
            f"k is {k}, and {smaller} holds {count} pictures: each needs k neighbours beside itself. Give k from 1 to {count - 1}."
        )
    reach, reach_generated = radii(reference, k, between), radii(generated, k, between)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    recalled = covered = inside = 0
    for rows, radius in zip(blocks(reference, between), reach.split(ROWS)):
        distance = distances(rows, generated)
        held = distance < radius[:, None]
        precise |= held.any(0)
        inside += int(held.sum())
        covered += int(held.any(1).sum())
        recalled += int((distance < reach_generated).any(1).sum())
    return {
        "precision": float(precise.double().mean()),
        "recall": recalled / len(reference),
        "density": inside / (k * len(generated)),
        "coverage": covered / len(reference),
    }


def radii(features, k, between):
    """The distance of each picture to its k-th nearest neighbour, itself not counted."""
    return torch.cat([distances(rows, features).kthvalue(k + 1, dim=1).values for rows in blocks(features, between)])


def distances(a, b):
    """Pairwise, each from its own pair alone: a matrix product would break ties, on which borders depend, by rounding."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def check_features(name, features, least=2):
    if features.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(features.shape)}, and features are (pictures, features).")
    if len(features) < least:
        raise ValueError(f"{name}: {len(features)} pictures, and this needs at least {least}. Add pictures.")
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise ValueError(f"{name}: the features of picture {bad} are NaN or infinite. Look for what failed before it.")
    return features.detach().double()


def pair(reference, generated):
    reference, generated = check_features("reference", reference), check_features("generated", generated)
    if reference.shape[1] != generated.shape[1]:
        raise ValueError(
            f"generated: {generated.shape[1]} features a picture, and reference has {reference.shape[1]}. Take both from the same "
            "network."
        )
    return reference, generated


def check_probabilities(probabilities):
    p = check_features("probabilities", probabilities, least=1)
    if (p < 0).any() or ((p.sum(1) - 1).abs() > 1e-3).any():
        raise ValueError("probabilities: each row must be at least 0 and sum to 1. Apply softmax to logits first.")
    return p
