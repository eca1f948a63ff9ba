"""Fidelity of pictures and latents, against closed forms and other implementations on the same pictures."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from comfyui_distillery.measure.pictures import ALEXNET, clip_score, compare, compare_latents, sharpness, to_lab

from tools.launch import apply_shims

apply_shims()  # torchmetrics imports torchvision, whose compiled parts the CPU build of torch may not load
IDEAL = {
    "psnr": 100, "ssim": 1, "mean_difference": 0, "max_difference": 0, "sharpness_ratio": 1, "delta_e": 0, "colour_shift": 0,
    "contrast_shift": 0, "saturation_shift": 0,
}  # fmt: skip


def pictures(count=2, height=24, width=32, seed=0):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def flat(*colour, side=16):
    return torch.tensor(colour).expand(1, side, side, 3)


def means(found):
    return {name: value["mean"] for name, value in found.items()}


@pytest.mark.parametrize("images", [pictures(), flat(0.2, 0.4, 0.6), flat(0.0, 0.0, 0.0)], ids=["noise", "flat", "black"])
def test_equal_pictures_give_exactly_the_ideals(images):
    found = compare(images, images.clone())
    assert found == {name: {"mean": value, "items": [value] * len(images)} for name, value in IDEAL.items()}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_each_picture_is_measured_on_its_own():
    a, b = pictures(3), pictures(3, seed=1)
    found, alone = compare(a, b), [compare(a[i : i + 1], b[i : i + 1]) for i in range(3)]
    for name, value in found.items():
        assert value["items"] == [single[name]["mean"] for single in alone]
        assert value["mean"] == pytest.approx(sum(value["items"]) / 3)


def test_it_says_when_each_picture_is_measured():
    measured = []
    compare(pictures(3), pictures(3, seed=1), lambda: measured.append("one more"))
    assert len(measured) == 3


def test_psnr_and_ssim_are_torchmetrics():
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    a, b = pictures(1), (pictures(1) + 0.1 * pictures(1, seed=1)).clamp(0, 1)
    found, channels_first = means(compare(a, b)), [x.movedim(-1, 1).double() for x in (b, a)]
    assert found["psnr"] == pytest.approx(float(PeakSignalNoiseRatio(data_range=1.0)(*channels_first)), rel=1e-6)
    assert found["ssim"] == pytest.approx(float(StructuralSimilarityIndexMeasure(data_range=1.0)(*channels_first)), rel=1e-6)
    assert 0 < found["ssim"] < 1


def test_ssim_of_two_flat_greys_is_its_closed_form():
    x, y, c = 0.2, 0.6, 0.01**2
    found = means(compare(flat(x, x, x), flat(y, y, y)))["ssim"]
    assert found == pytest.approx((2 * x * y + c) / (x * x + y * y + c), rel=1e-5)


def test_a_step_of_a_tenth_is_20_db_and_psnr_ends_at_100():
    a = 0.5 * pictures()
    found = means(compare(a, a + 0.1))
    assert found["psnr"] == pytest.approx(20, abs=1e-4)
    assert found["mean_difference"] == pytest.approx(0.1) and found["max_difference"] == pytest.approx(0.1)
    one_pixel = a.clone()
    one_pixel[0, 0, 0, 0] += 1e-5
    found = compare(a, one_pixel)
    assert found["psnr"]["items"] == [100, 100] and found["max_difference"]["items"][0] > 0


def test_sharpness_of_a_wave_is_its_closed_form():
    """The Laplacian of a wave is the wave times 2 cos(w) - 2, away from the borders."""
    w = 2 * math.pi / 8
    wave = (0.25 * torch.sin(w * torch.arange(66).double())).expand(1, 3, 66, 66)
    assert float(sharpness(0.5 + wave)) == pytest.approx((2 - 2 * math.cos(w)) ** 2 * 0.25**2 / 2, rel=1e-9)


def test_blurring_lowers_sharpness_and_sharpening_raises_it():
    a = 0.25 + 0.5 * pictures(1, 64, 64)
    blurred = F.avg_pool2d(a.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert means(compare(a, blurred))["sharpness_ratio"] < 0.2
    assert means(compare(a, a + 0.3 * (a - blurred)))["sharpness_ratio"] > 1.5
    assert means(compare(flat(0.1, 0.1, 0.1), flat(0.8, 0.8, 0.8)))["sharpness_ratio"] == pytest.approx(1), "both are flat"


@pytest.mark.parametrize(
    "rgb, lab",
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.01, 0.01, 0.01), (0.70, 0, 0)),
    ],
)
def test_cielab_has_the_published_values(rgb, lab):
    found = to_lab(torch.tensor(rgb).double().view(3, 1, 1)).flatten().tolist()
    assert found == pytest.approx(lab, abs=0.03)  # they are of matrices with different last digits


def test_colour_drift_tells_a_tint_from_noise_and_contrast_from_saturation():
    white, grey = to_lab(torch.ones(3, 1, 1).double())[0].item(), to_lab(0.5 * torch.ones(3, 1, 1).double())[0].item()
    tint = means(compare(flat(1.0, 1.0, 1.0), flat(0.5, 0.5, 0.5)))
    assert tint["delta_e"] == pytest.approx(white - grey) and tint["colour_shift"] == pytest.approx(white - grey)
    a = flat(0.5, 0.5, 0.5, side=64)
    lightness = torch.where(torch.arange(64) % 2 == 0, 0.6, 0.4).view(1, 64, 1, 1).expand(1, 64, 64, 3)
    striped = means(compare(a, lightness))
    assert striped["delta_e"] > 8 and striped["colour_shift"] < 0.5 and striped["contrast_shift"] > 8
    assert striped["saturation_shift"] == pytest.approx(0, abs=1e-9)
    assert means(compare(a, flat(0.7, 0.5, 0.3, side=64)))["saturation_shift"] > 20


def test_alpha_is_left_out_and_values_are_clipped_as_when_saved():
    a = pictures()
    with_alpha = torch.cat((a, torch.zeros(2, 24, 32, 1)), -1)
    other = torch.cat((a, torch.ones(2, 24, 32, 1)), -1)
    assert means(compare(with_alpha, other)) == IDEAL
    bright = flat(1.0, 0.5, 0.0)
    assert means(compare(bright, bright + 0.5 * (bright > 0.9) - 0.5 * (bright < 0.1))) == IDEAL


# LPIPS


@pytest.fixture
def alexnet(tmp_path, monkeypatch):
    """torchvision's AlexNet with random layers, where torch hub would have put it. LPIPS reads the convolutions only."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.AlexNet()
    state = network.state_dict()
    for key in state:
        if key.startswith("classifier"):
            state[key] = torch.zeros(1).expand(state[key].shape)  # one number on disk
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / ALEXNET)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return network.features.eval()


def test_lpips_is_the_published_formula_where_its_weights_are(alexnet):
    from torchmetrics.functional.image import lpips
    from torchvision.models import AlexNet_Weights

    assert AlexNet_Weights.DEFAULT.url.endswith(f"/{ALEXNET}")
    a, b = pictures(2, 64, 64), pictures(2, 64, 64, seed=1)
    weights = torch.load(f"{lpips.__file__.rpartition('/')[0]}/lpips_models/alex.pth", "cpu", weights_only=True)
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).view(2, 3, 1, 1)
    expected = []
    for pair in zip(a, b):
        x = (2 * torch.stack(pair).movedim(-1, 1) - 1 - shift) / scale
        total, layer = 0.0, 0
        with torch.no_grad():
            for index, module in enumerate(alexnet):
                x = module(x)
                if index in (1, 4, 7, 9, 11):
                    unit = x / x.norm(dim=1, keepdim=True)
                    lin = weights[f"lin{layer}.model.1.weight"]
                    total += float(F.conv2d((unit[:1] - unit[1:]).square(), lin).mean())
                    layer += 1
        expected.append(total)
    with torch.inference_mode():  # as in a node
        found = compare(a, b)["lpips"]
    assert found["items"] == pytest.approx(expected, rel=1e-4)
    assert compare(a, a)["lpips"] == {"mean": 0, "items": [0, 0]}
    assert "lpips" not in compare(a[:, :40], b[:, :40]), "AlexNet cannot read pictures as small as that"


def test_lpips_is_left_out_and_nothing_is_downloaded_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    a = pictures(1, 64, 64)
    assert set(compare(a, a)) == set(IDEAL)
    assert not list(tmp_path.iterdir())


# Latents and embeddings


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 16, 2, 8, 8), (2, 8, 100)], ids=["image", "video", "audio"])
def test_latents_are_compared_item_by_item(shape):
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = {"mean": 0, "items": [0] * shape[0]}
    assert compare_latents(a, a.clone()) == {
        "latent_relative_error": exact,
        "latent_cosine": {"mean": 1, "items": [1] * shape[0]},
    }
    scale = 1 + torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1))
    found = compare_latents(a, a * scale)
    assert found["latent_relative_error"]["items"] == pytest.approx(list(range(shape[0])), abs=1e-6)
    assert found["latent_cosine"]["items"] == pytest.approx([1] * shape[0])
    across = a.flip(1) - a * ((a.flip(1) * a).flatten(1).sum(1) / a.square().flatten(1).sum(1)).view(scale.shape)
    assert compare_latents(a, across)["latent_cosine"]["items"] == pytest.approx([0] * shape[0], abs=1e-6)
    assert compare_latents(a, 0 * a)["latent_cosine"]["items"] == [0] * shape[0]


def test_clip_score_is_100_times_the_cosine_and_never_below_0():
    angle = torch.tensor([0.0, math.pi / 3, math.pi / 2 + 0.1])
    image = torch.stack((torch.ones(3), torch.zeros(3)), -1)
    text = 5 * torch.stack((angle.cos(), angle.sin()), -1)
    assert clip_score(image, text).tolist() == pytest.approx([100, 50, 0], abs=1e-4)


# Bad input

NAN = pictures()
NAN[1, 3, 3, 0] = math.nan


@pytest.mark.parametrize(
    "reference, candidate, complaint",
    [
        (pictures(), pictures(3), r"candidate has shape \(3, 24, 32, 3\) and reference \(2, 24, 32, 3\)"),
        (pictures(), pictures(width=16), r"candidate has shape \(2, 24, 16, 3\).*same batch size and resolution"),
        (pictures(), NAN, "candidate: item 1 holds NaN or infinite values"),
        (NAN, pictures(), "reference: item 1 holds NaN or infinite values"),
        (pictures()[:0], pictures()[:0], "reference: the batch is empty"),
        (pictures()[..., :1], pictures()[..., :1], r"reference: got shape \(2, 24, 32, 1\)"),
        (pictures(height=8), pictures(height=8), "reference: pictures of 32 x 8 are too small for SSIM; give 11"),
    ],
)
def test_bad_pictures_are_named(reference, candidate, complaint):
    with pytest.raises(ValueError, match=complaint):
        compare(reference, candidate)


def test_bad_latents_are_named():
    good = torch.ones(2, 4, 8, 8)
    with pytest.raises(ValueError, match="candidate has shape"):
        compare_latents(good, good[:, :2])
    with pytest.raises(ValueError, match="reference: item 1 is all zeros"):
        compare_latents(good * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), good)
    with pytest.raises(ValueError, match="candidate: item 0 holds NaN"):
        compare_latents(good, good / 0 - good / 0)
    with pytest.raises(ValueError, match="text_embeddings has shape"):
        clip_score(torch.ones(2, 4), torch.ones(2, 5))


def test_a_missing_torchmetrics_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ValueError, match="SSIM needs it. Install it with: pip install torchmetrics"):
        compare(pictures(), pictures(seed=1))
