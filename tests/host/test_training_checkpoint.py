"""Blocks that write over their inputs: gradients as if they did not, kept or run again."""

import pytest
import torch
from comfyui_distillery.nodes.host_checkpoint import Checkpoints
from torch.utils.checkpoint import checkpoint


class Block(torch.nn.Module):
    """x + w tanh(x), twice over, as Flux writes it: in place, over what autograd has kept."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        for _ in range(2):
            kept = x * x
            x += self.weight * torch.tanh(kept)
        return x


def out_of_place(x, weight):
    for _ in range(2):
        x = x + weight * torch.tanh(x * x)
    return x


def gradients(run, depth=3):
    """(by x, by the weights) of a chain of blocks, run(block, x)."""
    blocks = [Block() for _ in range(depth)]
    x = torch.linspace(-1, 1, 7).requires_grad_()
    stream = x * 1
    for block in blocks:
        stream = run(block, stream)
    return torch.autograd.grad(stream.sin().sum(), [x, *(block.weight for block in blocks)]), blocks


def with_checkpoints(recompute):
    checkpoints = Checkpoints(recompute)
    return lambda block, x: checkpoints.run(block, lambda: block(x.clone()))


EXPECTED = gradients(lambda block, x: out_of_place(x, block.weight))[0]


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_exact_where_a_block_writes_over_what_autograd_keeps(recompute):
    made, _ = gradients(with_checkpoints(recompute))
    for a, b in zip(made, EXPECTED):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_torch_alone_refuses_such_a_block_and_its_checkpoints_are_wrong_on_copies_too():
    """What the guards are for."""
    with pytest.raises(RuntimeError, match="inplace"):
        gradients(lambda block, x: block(x))
    made, _ = gradients(lambda block, x: checkpoint(lambda x: block(x.clone()), x, use_reentrant=False))
    assert not torch.allclose(made[0], EXPECTED[0], rtol=1e-2)


@pytest.mark.parametrize("recompute, first, later", [(False, 2, 1), (True, 3, 2)])
def test_what_is_written_over_is_found_once_and_a_block_is_run_again_only_with_recompute(recompute, first, later):
    checkpoints, block = Checkpoints(recompute), Block()
    for runs in (first, later):
        block.runs = 0
        checkpoints.run(block, lambda: block(torch.ones(3))).sum().backward()
        assert block.runs == runs


def test_recomputing_keeps_nothing_but_the_inputs():
    kept = []
    block = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(5)))
    x = torch.randn(2, 4)
    checkpoints = Checkpoints(True)
    run_keeping = checkpoints._run_keeping
    checkpoints._run_keeping = lambda *args: kept.append(None) or run_keeping(*args)
    output = checkpoints.run(block, lambda: block(x))
    assert not kept and all(isinstance(value, int) for value in saved_by(output.grad_fn))
    output.sum().backward()
    assert len(kept) == 1


def saved_by(node):
    """What a graph holds, as its pack hooks left it."""
    return [getattr(node, name).data for name in dir(node) if name.startswith("_raw_saved") and hasattr(node, name)]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_second_backward_pass_over_a_kept_graph_gives_the_same(recompute):
    block, x = Block(), torch.ones(3, requires_grad=True)
    loss = with_checkpoints(recompute)(block, x).sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])


def test_nothing_is_kept_without_gradients():
    with torch.no_grad():
        assert not with_checkpoints(True)(Block(), torch.ones(3)).requires_grad


@pytest.mark.parametrize("recompute, when", [(False, "after"), (True, "again")])
def test_what_cannot_be_right_is_an_error(recompute, when):
    checkpoints, flips = Checkpoints(recompute), iter([1, 2])
    x = torch.ones(3, requires_grad=True)

    def block():
        output = x * 1
        for _ in range(next(flips) if recompute else 1):
            output = output.exp()
        return output

    output = checkpoints.run(torch.nn.Module(), block)
    if not recompute:
        with torch.no_grad():
            output.zero_()
    with pytest.raises(RuntimeError, match=when):
        output.sum().backward()
