"""Noise: one seed per item, the same on every machine and at every batch size."""

import pytest
import torch
from comfyui_distillery.samplers.noise import fixed, gaussian, initial, item_seeds

SHAPES = [(3, 4, 8, 8), (3, 4, 2, 8, 8), (3, 1, 192)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def comfy_prepare_noise(shape, seed):
    """comfy.sample.prepare_noise, whose two lines these are."""
    generator = torch.manual_seed(seed)
    return torch.randn(shape, dtype=torch.float32, generator=generator, device="cpu")


@every_shape
def test_initial_noise_of_an_item_is_the_single_run_with_its_seed(shape):
    noise = initial(shape, item_seeds(7, 3))
    assert noise.dtype == torch.float32
    for i in range(3):
        assert torch.equal(noise[i : i + 1], comfy_prepare_noise((1, *shape[1:]), 7 + i))


@every_shape
def test_batch_size_never_changes_an_items_noise(shape):
    x = torch.zeros(shape)
    batch, alone = gaussian(x, [5, 6, 7]), gaussian(x[1:2], [6])
    for _ in range(3):
        assert torch.equal(batch(1.0, 0.5)[1:2], alone(1.0, 0.5))


def test_renoising_is_standard_normal_and_never_repeats():
    x = torch.zeros(2, 4, 64, 64)
    source = gaussian(x, [0, 1])
    draws = torch.cat([initial(x.shape, [0, 1]), source(1.0, 0.5), source(0.5, 0.2)])
    correlation = torch.corrcoef(draws.flatten(1))
    assert (correlation - torch.eye(6)).abs().max() < 0.05  # 6 sigma
    assert draws.mean().abs() < 0.03 and abs(draws.std() - 1) < 0.02


def test_same_seeds_same_noise_and_global_generator_untouched():
    x = torch.zeros(2, 4, 8, 8, dtype=torch.float64)
    state = torch.get_rng_state()
    one, two = gaussian(x, [3, 4]), gaussian(x, [3, 4])
    assert torch.equal(one(1.0, 0.5), two(1.0, 0.5)) and one(1.0, 0.5).dtype == x.dtype
    assert torch.equal(initial(x.shape, [3, 4]), initial(x.shape, [3, 4]))
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_wrap_where_comfyui_ends():
    assert item_seeds(2**64 - 1, 2) == [2**64 - 1, 0]
    gaussian(initial((2, 1, 4), item_seeds(2**64 - 1, 2)), item_seeds(2**64 - 1, 2))(1.0, 0.5)


def test_fixed_hands_out_what_it_was_given():
    source = fixed([1, 2])
    assert [source(1.0, 0.5), source(0.5, 0.0)] == [1, 2]


def test_a_seed_per_item_is_required():
    for make in (lambda: initial((2, 4), [0]), lambda: gaussian(torch.zeros(2, 4), [0, 1, 2])):
        with pytest.raises(ValueError, match="for a batch of 2: give one seed per item"):
            make()
