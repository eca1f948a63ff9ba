"""Tokens that a transformer can do without for a while: which, what stands in for them, and when.

AT-EDM, Wang et al. 2024, arXiv:2405.05252: the attention maps of the network itself say which tokens matter (G-WPR), each token
left out takes what its most similar kept one gets, and the first steps prune less (DSAP). Our own ranking, by how distinct a token
is, costs no attention map. Batch items decide alone.
"""

from dataclasses import dataclass
from itertools import groupby

import torch

from .core import Knob

CELLS = 2**24  # entries of an attention map, or of a table of similarities, that are in memory at once

KNOBS = (
    Knob(
        "share", 0.5, "How many of the image's tokens are left out, as a share. Neutral: 0, none, bit for bit.", min=0.0, max=0.9,
        step=0.05,
    ),
    Knob(
        "ranking", "distinct", "Which tokens stay. distinct: those most unlike the mean of all, by what the block is given. attention: "
        "those that receive most attention (G-WPR), as AT-EDM publishes.", options=("distinct", "attention"),
    ),
    Knob(
        "early", 0.3, "In this first share of the steps, the outermost blocks keep all tokens. 0: in none of them.", min=0.0, max=1.0,
        step=0.05, advanced=True,
    ),
    Knob(
        "renew", 8, "After so many blocks the choice of tokens is made anew; it is also made anew where the resolution changes.", min=1,
        max=100, step=1, advanced=True,
    ),
    Knob(
        "iterations", 3, "Of the ranking by attention: 1 counts the attention of all tokens alike, more that of tokens which matter.",
        min=1, max=20, step=1, advanced=True,
    ),
    Knob(
        "keys", False, "Whether others cannot attend to the tokens left out either. Neutral: off, so what is kept sees all.",
        advanced=True,
    ),
)  # fmt: skip


def importance(q, k, iterations=3, scale=None, cells=CELLS):
    """How much tokens matter: (B, N), float32 at least, above 0.

    G-WPR, graph-based weighted page rank: with A the attention map, rows summing to 1, ``s <- A^T s`` from uniform, heads joined
    by the root of the mean square. q (B, H, N, D), k (B, H or a divisor of it, N, D), as attention gets them; scale: what it
    multiplies q k^T by, D^-0.5 by default. The map is made again for each iteration, in pieces of ``cells`` entries; once if one
    piece is enough.
    """
    batch, heads, tokens, width = q.shape
    k = k.repeat_interleave(heads // k.shape[1], dim=1).transpose(2, 3)
    scale = width**-0.5 if scale is None else scale
    dtype = torch.promote_types(q.dtype, torch.float32)
    rows = max(cells // (batch * heads * tokens), 1)

    def maps():
        return ((part @ k).to(dtype).mul_(scale).softmax(dim=-1) for part in q.split(rows, dim=2))

    whole = list(maps()) if rows >= tokens else None
    score = torch.full((batch, heads, 1, tokens), 1 / tokens, dtype=dtype, device=q.device)
    for _ in range(iterations):
        score = sum(given @ part for given, part in zip(score.split(rows, dim=3), whole or maps()))
    return score.squeeze(2).square().mean(dim=1).sqrt()


def distinctness(features):
    """How unlike the others tokens are: the distance of features (B, N, C) from their mean over an item's tokens, (B, N)."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return (features - features.mean(dim=1, keepdim=True)).norm(dim=-1)


def pick(x, index, dim):
    """x at index (B, K) of its axis ``dim``; its first axis is the batch."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    return torch.take_along_dim(x, index.reshape(shape), dim)


@dataclass(frozen=True)
class Choice:
    """Which of N tokens are kept, and which of the kept stands in for each.

    kept: (B, K) their places, rising. twin: (B, N) numbers of kept ones, 0 to K - 1; a kept token is its own twin.
    """

    kept: torch.Tensor
    twin: torch.Tensor

    def prune(self, x, dim=1):
        return pick(x, self.kept, dim)

    def restore(self, x, dim=1):
        return pick(x, self.twin, dim)

    def counts(self):
        """(B, K) for how many tokens each kept one stands, itself included."""
        ones = torch.ones_like(self.twin)
        return torch.zeros_like(self.kept).scatter_add_(1, self.twin, ones)

    def behind(self, before):
        """The same choice with so many tokens before, all of them kept."""
        first = torch.arange(before, device=self.kept.device).expand(len(self.kept), -1)
        return Choice(torch.cat([first, self.kept + before], dim=1), torch.cat([first, self.twin + before], dim=1))


def choose(score, features, share, cells=CELLS):
    """The Choice that leaves out the least important ``share`` of the tokens, rounded down to whole ones; one at least stays.

    score (B, N), features (B, N, C): a token's twin is the kept one whose features have the largest cosine to its own.
    """
    tokens = score.shape[1]
    count = max(tokens - int(share * tokens), 1)
    order = score.argsort(dim=1, descending=True)
    kept, rest = order[:, :count].sort(dim=1).values, order[:, count:]
    features = torch.nn.functional.normalize(features.to(score), dim=-1).to(features)
    candidates = pick(features, kept, 1).transpose(1, 2)
    parts = pick(features, rest, 1).split(max(cells // candidates[:, 0].numel(), 1), dim=1)
    nearest = torch.cat([(part @ candidates).argmax(dim=-1) for part in parts], dim=1)
    own = torch.arange(count, device=score.device).expand_as(kept)
    return Choice(kept, torch.empty_like(order).scatter_(1, kept, own).scatter_(1, rest, nearest))


def is_early(sigma, sigmas, early):
    """Whether the noise level belongs to the first share ``early`` of the steps. sigmas: the run's, a list falling to the last."""
    step = sum(level > sigma * (1 + 1e-6) for level in sigmas)
    return step < early * (len(sigmas) - 1)


def outermost(stages):
    """Places of the blocks that early steps leave whole, as a set (DSAP).

    stages: for each block in order, (side, anything that differs from stage to stage). Of side "down" the first of each stage, of
    "up" the last, of "middle" none; of networks without sides, "", both.
    """
    places = set()
    for (side, _), stage in groupby(range(len(stages)), key=lambda place: stages[place]):
        inside = list(stage)
        places |= {"down": {inside[0]}, "up": {inside[-1]}, "middle": set(), "": {inside[0], inside[-1]}}[side]
    return places
