"""What Compare draws, read back from the figure before it becomes pixels."""

import numpy as np
import pytest
import torch
from comfyui_distillery.measure import side_by_side

pytest.importorskip("matplotlib")


@pytest.fixture
def images():
    """Three reference pictures, and candidates that differ by (item + 1) / 10 in one of three channels in one corner."""
    reference = torch.full((3, 16, 24, 3), 0.25)
    candidate = reference.clone()
    for item in range(3):
        candidate[item, :4, :4, 1] += (item + 1) / 10
    return reference, candidate


def lines(views, **settings):
    """The drawn arrays, line by line, the titles, and the brightest value of the difference."""
    axes = [axis for axis in side_by_side.plot(views, **settings).axes if axis.images]
    drawn = [axis.images[0] for axis in axes]
    titles = [axis.get_title() for axis in axes[:3]]
    labels = [axis.get_ylabel() for axis in axes[::3]]
    return [drawn[i : i + 3] for i in range(0, len(drawn), 3)], titles, labels


def test_each_item_is_a_line_of_reference_candidate_and_difference(images):
    reference, candidate = images
    drawn, titles, labels = lines(side_by_side.of_images(*images))
    assert titles == ["reference", "candidate", "difference × 10"] and labels == ["item 1", "item 2", "item 3"]
    for item, (left, middle, right) in enumerate(drawn):
        np.testing.assert_array_equal(left.get_array(), reference[item])
        np.testing.assert_array_equal(middle.get_array(), candidate[item])
        expected = np.zeros((16, 24))
        expected[:4, :4] = (item + 1) / 30  # the mean over channels
        np.testing.assert_allclose(right.get_array(), expected, atol=1e-6)
        np.testing.assert_allclose(right.get_clim(), (0, 0.1), rtol=1e-5)


def test_fewer_lines_are_evenly_spread_and_gain_sets_the_scale(images):
    drawn, titles, labels = lines(side_by_side.of_images(*images), rows=2, gain=4.0)
    assert labels == ["item 1", "item 3"] and titles[2] == "difference × 4"
    assert drawn[0][2].get_clim() == (0, 0.25)


def test_equal_pictures_are_said_to_be_equal(images):
    drawn, titles, _ = lines(side_by_side.of_images(images[0], images[0].clone()))
    assert titles[2] == "no difference" and not drawn[0][2].get_array().any()


def test_pictures_are_clipped_as_when_saved_and_alpha_is_left_out():
    candidate = torch.tensor([-1.0, 0.5, 2.0, 0.3]).expand(1, 16, 16, 4)
    views = side_by_side.of_images(torch.zeros(1, 16, 16, 4), candidate)
    assert views.candidate[0, 0, 0].tolist() == [0, 0.5, 1] and torch.allclose(views.difference, torch.tensor(0.5))


def test_frames_of_video_latents_are_drawn_for_themselves():
    reference = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    candidate = reference.clone()
    candidate[1, :8, 2] += 1.0  # half of the channels of the last frame
    views = side_by_side.of_latents(reference, candidate)
    assert views.labels[0] == "item 1, frame 1" and views.labels[-1] == "item 2, frame 3"
    assert views.difference.flatten(1).amax(1).tolist() == pytest.approx([0, 0, 0, 0, 0, 0.5])


def test_latents_are_drawn_on_the_scale_of_the_reference():
    reference = torch.linspace(-3, 3, 1001).expand(1, 4, 1, 1001)
    views = side_by_side.of_latents(reference, 0.5 * reference)
    low, high = -2.94, 2.94  # 1 % of the levels is darker, 1 % brighter
    expected = ((reference[0, 0, 0] - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(views.reference[0, 0, :, 0], expected)
    torch.testing.assert_close(views.candidate[0, 0, :, 0], (0.5 * reference[0, 0, 0] - low) / (high - low))


@pytest.mark.parametrize(
    ("shape", "pictures"),
    [((2, 1, 8, 8), 2), ((2, 2, 8, 8), 2), ((2, 64, 32), 2), ((2, 16, 3, 8, 8), 6), ((1, 16, 2, 3, 8, 8), 6)],
)
def test_any_layout_of_latents_becomes_pictures(shape, pictures):
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    views = side_by_side.of_latents(latent, latent + 0.1)
    assert len(views.labels) == len(views.reference) == len(views.candidate) == len(views.difference) == pictures
    torch.testing.assert_close(views.difference, torch.full_like(views.difference, 0.1), rtol=1e-3, atol=1e-6)
    image = side_by_side.draw(views, rows=1)
    assert image.shape[0] == 1 and image.shape[-1] == 3
