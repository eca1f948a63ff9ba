"""The Inception network of FID, from a weights file that the user supplies in the layout of pytorch-fid.

It is the TensorFlow graph of 2015-12-05 (Heusel et al. 2017, arXiv:1706.08500), not torchvision's Inception v3: 1008
classes, borders left out of average pools, one maximum pool. torchvision's blocks compute the rest.
"""

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 299
AVERAGE_POOLED = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b")
MAXIMUM_POOLED = ("Mixed_7c",)
CLASSES = 1008


def average_pool(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum_pool(x):
    return F.max_pool2d(x, 3, stride=1, padding=1)


class Repooled(nn.Module):
    """A block of torchvision's Inception whose last branch pools in another way."""

    def __init__(self, block, pool):
        super().__init__()
        self.block, self.pool = block, pool

    def forward(self, x):
        return torch.cat([*self.block._forward(x)[:-1], self.block.branch_pool(self.pool(x))], 1)


class FidInception(nn.Module):
    """Features (B, 2048) of IMAGE batches (B, H, W, 3) in [0, 1] at any size, and class probabilities (B, 1008) from them.

    ``weights``: a state dict as pytorch-fid's pt_inception-2015-12-05 holds it. Raises ValueError for any other layout, and
    where torchvision is missing.
    """

    def __init__(self, weights):
        super().__init__()
        try:
            from torchvision.models import Inception3
        except (ImportError, RuntimeError) as reason:  # a torchvision built for another torch raises RuntimeError
            raise ValueError(
                f"torchvision: {reason}, and Inception needs it. Install the one that fits your torch."
            ) from reason
        net = Inception3(num_classes=CLASSES, aux_logits=False, init_weights=False)
        check_layout(weights, net.state_dict())
        net.load_state_dict(weights, strict=False)
        for pool, names in ((average_pool, AVERAGE_POOLED), (maximum_pool, MAXIMUM_POOLED)):
            for name in names:
                setattr(net, name, Repooled(getattr(net, name), pool))
        self.classes, net.fc = net.fc, nn.Identity()
        self.net = net
        self.eval().requires_grad_(False)

    def features(self, images):
        """(B, H, W, 3) to (B, 2048) float32, resized and scaled as clean-fid does, Parmar et al. 2022, arXiv:2104.11222."""
        images = images[..., :3].movedim(-1, 1).to(self.classes.weight)
        images = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)  # PIL's bicubic filter
        return self.net((255 * images - 128) / 128)

    def probabilities(self, features):
        """(B, 2048) to (B, 1008), for the Inception score: without the last layer's bias, as in arXiv:1606.03498."""
        return F.linear(features, self.classes.weight).softmax(-1)


def check_layout(weights, wanted):
    """ValueError unless every parameter is there with its shape. Counters of batches seen are of no use and may be absent."""
    if "fc.weight" in weights and len(weights["fc.weight"]) != CLASSES:
        raise ValueError(
            f"weights: {len(weights['fc.weight'])} classes, and the network of FID has {CLASSES}. This is another Inception, such "
            "as torchvision's; features of it are not FID's."
        )
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    odd = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if missing or odd:
        raise ValueError(
            f"weights: not the layout of pytorch-fid's Inception: {len(missing)} parameters missing, {len(odd)} of another "
            f"shape, first {(missing + odd)[0]!r}."
        )
