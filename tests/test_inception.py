"""The Inception network of FID, with random weights: the layout of its file, and where it is and is not torchvision's.

Checked once by hand on random weights: the same features, to the last bit, as pytorch-fid 0.3.0 and torch-fidelity 0.4.0,
and the same resized pictures as clean-fid 0.1.35 to 0.005 of 255.
"""

import numpy as np
import pytest
import torch
from comfyui_distillery.measure.inception import AVERAGE_POOLED, MAXIMUM_POOLED, FidInception
from PIL import Image

from tools.launch import apply_shims

apply_shims()  # torchvision refuses to import without its compiled parts, which the CPU build of torch may not load
PARTS = {  # of pytorch-fid's pt_inception-2015-12-05-6726825d.pth
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
    "Mixed_6e.branch7x7dbl_5.bn.running_var": (192,),
    "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}


@pytest.fixture(scope="module")
def torchvisions():
    from torchvision.models import Inception3

    torch.manual_seed(0)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def weights(torchvisions):
    """As in the file, which is older than the counters of batches."""
    return {key: value for key, value in torchvisions.state_dict().items() if not key.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def network(weights):
    return FidInception(weights)


def test_the_layout_is_that_of_pytorch_fids_file(weights):
    assert len(weights) == 94 * 5 + 2  # 94 convolutions with their normalisation, and one linear layer
    assert {key: tuple(weights[key].shape) for key in PARTS} == PARTS


def test_outside_the_pools_it_is_torchvisions(network, torchvisions):
    x = torch.rand(1, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
    for name in stem:
        x = getattr(torchvisions, name)(x)
    for name in [name for name, _ in torchvisions.named_children() if name.startswith("Mixed")]:
        theirs, ours = getattr(torchvisions, name)(x), getattr(network.net, name)(x)
        if name in (*AVERAGE_POOLED, *MAXIMUM_POOLED):
            channels = getattr(torchvisions, name).branch_pool.conv.out_channels
            assert torch.equal(ours[:, :-channels], theirs[:, :-channels])
            assert not torch.equal(ours[:, -channels:], theirs[:, -channels:])
            if name in AVERAGE_POOLED:  # only borders differ
                torch.testing.assert_close(ours[:, -channels:, 1:-1, 1:-1], theirs[:, -channels:, 1:-1, 1:-1])
        else:
            assert torch.equal(ours, theirs)
        x = theirs if min(theirs.shape[2:]) > 3 else torch.rand(1, theirs.shape[1], 9, 9)


def test_averages_at_the_border_leave_out_what_lies_beyond(network):
    """So a constant stays one; torchvision's pool counts zeros there."""
    x = torch.full((1, 192, 5, 5), 0.7)
    pooled = network.net.Mixed_5b(x)[:, -32:]
    torch.testing.assert_close(pooled, pooled[:, :, 2:3, 2:3].expand_as(pooled))


@pytest.mark.parametrize("size", [(128, 128), (350, 310), (299, 299)], ids=["up", "down", "as it is"])
def test_pictures_are_resized_as_pil_does_and_scaled_as_tensorflow(network, weights, torchvisions, size):
    picture = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    channels = [Image.fromarray(picture[..., i]).resize((299, 299), Image.BICUBIC) for i in range(3)]
    resized = torch.from_numpy(np.stack(channels)).clamp(0, 1)[None]
    expected = network.net(255 / 128 * resized - 1)
    torch.testing.assert_close(network.features(torch.from_numpy(picture)[None]), expected, rtol=1e-3, atol=1e-4)


def test_probabilities_are_those_of_the_last_layer_without_its_bias(network, weights):
    features = torch.rand(3, 2048)
    found = network.probabilities(features)
    torch.testing.assert_close(found, (features @ weights["fc.weight"].T).softmax(-1))
    assert found.shape == (3, 1008)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"fc.weight": torch.zeros(1000, 2048)}, "1000 classes, and the network of FID has 1008. This is another Inception"),
        ({"Mixed_5b.branch_pool.conv.weight": None}, "1 parameters missing, 0 of another shape, first 'Mixed_5b.branch_pool"),
        ({"fc.bias": torch.zeros(3)}, "0 parameters missing, 1 of another shape, first 'fc.bias'"),
    ],
)
def test_other_weights_are_refused(weights, change, complaint):
    wrong = {key: value for key, value in {**weights, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=complaint):
        FidInception(wrong)
