"""Which tokens are left out, what stands in for them, and when: against closed forms."""

import pytest
import torch
from comfyui_distillery.samplers.pruning import Choice, choose, distinctness, importance, is_early, outermost

TOKENS, WIDTH = 24, 8


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(q, k, v, bias=0.0):
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1) @ v


@pytest.fixture
def heads():
    return noise(2, 4, TOKENS, WIDTH), noise(2, 4, TOKENS, WIDTH, seed=1)


@pytest.fixture
def doubled():
    """(x, choice): 16 tokens of two items, of which the second half repeats the first in another order and is left out."""
    x = noise(2, 8, WIDTH)
    x = torch.cat([x, x.flip(1)], dim=1)
    score = torch.arange(16, 0, -1.0, dtype=torch.float64).expand(2, -1)
    return x, choose(score, x, 0.5)


# G-WPR


def test_importance_of_a_markov_chain_is_its_stationary_distribution():
    transitions = noise(TOKENS, TOKENS).softmax(dim=-1)
    values, vectors = torch.linalg.eig(transitions.T)
    stationary = vectors[:, values.real.argmax()].real
    found = importance(transitions.log()[None, None], torch.eye(TOKENS, dtype=torch.float64)[None, None], iterations=200, scale=1.0)
    torch.testing.assert_close(found[0], stationary / stationary.sum(), rtol=1e-9, atol=1e-12)


def test_one_iteration_is_the_attention_received(heads):
    q, k = heads
    maps = (q @ k.transpose(2, 3) * WIDTH**-0.5).softmax(dim=-1)
    torch.testing.assert_close(importance(q, k, iterations=1), maps.mean(dim=2).square().mean(dim=1).sqrt())


@pytest.mark.parametrize("cells", [1, 500, 2 * 4 * TOKENS * 7])
def test_in_pieces_as_in_one(heads, cells):
    whole = importance(*heads, iterations=3)
    torch.testing.assert_close(importance(*heads, iterations=3, cells=cells), whole)
    features = noise(2, TOKENS, WIDTH)
    torch.testing.assert_close(choose(whole, features, 0.7, cells).twin, choose(whole, features, 0.7).twin)


def test_keys_may_be_shared_by_heads(heads):
    q, k = heads
    torch.testing.assert_close(importance(q, k[:, :2]), importance(q, k[:, :2].repeat_interleave(2, dim=1)))


def test_renumbered_tokens_are_chosen_alike(heads):
    q, k = heads
    features, order = noise(2, TOKENS, WIDTH, seed=2), torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    for rank in (lambda order: importance(q[:, :, order], k[:, :, order]), lambda order: distinctness(features[:, order])):
        plain, moved = choose(rank(slice(None)), features, 0.6), choose(rank(order), features[:, order], 0.6)
        stand_ins = [choice.restore(choice.prune(x)) for choice, x in ((plain, features), (moved, features[:, order]))]
        torch.testing.assert_close(stand_ins[0][:, order], stand_ins[1])


# The choice


def test_what_stays_stays_as_it_is():
    x = noise(2, TOKENS, WIDTH)
    choice = choose(distinctness(x), x, 0.6)
    assert choice.kept.shape == (2, TOKENS - int(0.6 * TOKENS))
    assert (choice.prune(choice.restore(choice.prune(x))) == choice.prune(x)).all()
    assert (choice.counts().sum(dim=1) == TOKENS).all() and (choice.counts() >= 1).all()


def test_the_twin_is_the_nearest_by_angle():
    x = noise(1, TOKENS, WIDTH)
    choice = choose(distinctness(x), x, 0.5)
    similar = torch.nn.functional.cosine_similarity(x[0, :, None], x[0, choice.kept[0]][None], dim=-1)
    assert (similar.argmax(dim=1) == choice.twin[0]).all()


def test_the_least_important_go_and_one_stays():
    x, score = noise(1, TOKENS, WIDTH), torch.arange(float(TOKENS))[None].double()
    assert choose(score, x, 0.25).kept.tolist() == [list(range(6, TOKENS))]
    assert choose(score, x, 1.0).kept.tolist() == [[TOKENS - 1]]
    nothing = choose(score, x, 0.04)  # less than one token
    assert nothing.kept.tolist() == nothing.twin.tolist() == [list(range(TOKENS))]


def test_items_decide_alone():
    x = noise(3, TOKENS, WIDTH)
    together, alone = choose(distinctness(x), x, 0.5), [choose(distinctness(item), item, 0.5) for item in x.split(1)]
    assert (together.kept == torch.cat([choice.kept for choice in alone])).all()
    assert (together.twin == torch.cat([choice.twin for choice in alone])).all()


def test_tokens_before_are_kept():
    x = noise(2, TOKENS, WIDTH)
    choice = choose(distinctness(x), x, 0.5)
    both = torch.cat([noise(2, 5, WIDTH, seed=1), x], dim=1)
    behind = choice.behind(5)
    assert (behind.prune(both) == torch.cat([both[:, :5], choice.prune(x)], dim=1)).all()
    assert (behind.restore(behind.prune(both)) == torch.cat([both[:, :5], choice.restore(choice.prune(x))], dim=1)).all()


def test_other_axes():
    choice, x = Choice(torch.tensor([[1, 2]]), torch.tensor([[0, 0, 1]])), noise(1, 4, 3, WIDTH)
    assert (choice.prune(x, 2) == x[:, :, [1, 2]]).all()
    assert (choice.restore(choice.prune(x, 2), 2) == x[:, :, [1, 1, 2]]).all()


# Duplicates lose nothing


def test_duplicates_of_what_goes_token_by_token_are_restored_exactly(doubled):
    x, choice = doubled
    assert (choice.restore(torch.tanh(choice.prune(x)).square()) == torch.tanh(x).square()).all()


def test_duplicates_lose_nothing_in_attention(doubled):
    """Without their queries always; without their keys where those that stay count for them."""
    x, choice = doubled
    full = attention(x, x, x)
    torch.testing.assert_close(choice.restore(attention(choice.prune(x), x, x)), full)
    kept = choice.prune(x)
    counted = attention(kept, kept, kept, choice.counts().log()[:, None])
    torch.testing.assert_close(choice.restore(counted), full)


def test_keys_that_count_for_unequal_numbers():
    x = noise(1, 3, WIDTH)
    x = x[:, [0, 1, 1, 1, 2, 0]]
    choice = choose(torch.tensor([[9.0, 8, 1, 2, 7, 3]]).double(), x, 0.5)
    kept = choice.prune(x)
    assert choice.counts().tolist() == [[2, 3, 1]]
    torch.testing.assert_close(choice.restore(attention(kept, kept, kept, choice.counts().log()[:, None])), attention(x, x, x))


# When


def test_early_steps():
    sigmas = [10.0, 8.0, 5.0, 2.0, 0.0]
    assert [is_early(sigma, sigmas, 0.5) for sigma in sigmas[:-1]] == [True, True, False, False]
    assert is_early(9.0, sigmas, 0.5) and not is_early(7.0, sigmas, 0.5)  # within a step, as Heun's second evaluation ends it
    assert not is_early(10.0, sigmas, 0.0) and is_early(2.0, sigmas, 1.0)


def test_what_early_steps_spare():
    stages = [("down", 0), ("down", 0), ("down", 1), ("down", 1), ("middle", 1), ("up", 1), ("up", 1), ("up", 2), ("up", 2)]
    assert outermost(stages) == {0, 2, 6, 8}
    assert outermost([("", "double")] * 3 + [("", "single")] * 4) == {0, 2, 3, 6}
    assert outermost([("", "one")]) == {0}
