"""LoRA files in other dialects lose nothing, merging is exact and resizing optimal."""

import pytest
import torch
from comfyui_distillery.distill import formats
from comfyui_distillery.distill.formats import Part
from comfyui_distillery.distill.lora import Adapter, LoraSet

SHAPES = {"qkv": (12, 8), "final": (6, 8), "conv": (5, 3, 3, 3)}  # path: of the base's weight
NAMES = {  # as diffusers splits and swaps them
    "transformer.to_q": Part("qkv", 0, 4, 12),
    "transformer.to_k": Part("qkv", 4, 8, 12),
    "transformer.to_v": Part("qkv", 8, 12, 12),
    "transformer.norm_out": Part("final", 0, 6, 6, swapped=True),
    "transformer.conv": Part.whole("conv", 5),
}


def lora_of(shapes=None, rank=3, alpha=None, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for path, (rows, *rest) in (shapes or SHAPES).items():
        down = torch.randn(rank, *rest, generator=generator)
        up = torch.randn(rows, rank, *[1] * (len(rest) - 1), generator=generator)
        adapters[path] = Adapter(down.to(dtype), up.to(dtype), rank if alpha is None else alpha)
    return LoraSet(adapters)


def increments(lora):
    """{path: what it adds to the weight}, in float64."""
    with torch.no_grad():
        return {path: adapter.double().weight() for path, adapter in LoraSet.from_state(lora.state()).items()}


def assert_bit_for_bit(a, b):
    a, b = a.state(), b.state()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


# Dialects


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dialect", formats.DIALECTS)
def test_a_round_trip_changes_no_bit(dialect, dtype):
    lora = lora_of(dtype=dtype, alpha=3.0 if dialect == "diffusers" else 1.7)
    rows = {path: shape[0] for path, shape in SHAPES.items()}
    names = NAMES if dialect == "diffusers" else formats.native_names(rows, dialect)
    assert_bit_for_bit(formats.from_file(formats.to_file(lora, names, dialect), names), lora)


def test_the_parts_are_the_rows_that_their_names_say():
    """Against the weight as a checkpoint of diffusers has it: q, k and v apart, the final scale before its shift."""
    lora = lora_of(alpha=6.0)  # scale 2: exact
    tensors, added = formats.to_file(lora, NAMES, "diffusers"), increments(lora)
    theirs = dict(zip(["to_q", "to_k", "to_v"], added["qkv"].chunk(3)), norm_out=added["final"].roll(3, 0))
    for name, expected in theirs.items():
        down, up = (tensors[f"transformer.{name}.lora_{which}.weight"].double() for which in "AB")
        assert torch.allclose(up @ down, expected, rtol=0, atol=1e-12)
    assert not [key for key in tensors if "alpha" in key]


@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 2**-24), (torch.bfloat16, 2**-8)])
def test_folding_alpha_rounds_up_once(dtype, rounding):
    lora = lora_of(alpha=1.7, dtype=dtype)
    up, folded = lora["qkv"].up.detach(), formats.from_file(formats.to_file(lora, NAMES, "diffusers"), NAMES)["qkv"]
    exact = up.double() * (1.7 / 3)
    assert folded.scale == 1 and folded.up.dtype == dtype
    assert ((folded.up.double() - exact).abs() <= 1.01 * rounding * exact.abs()).all()


def test_a_unet_has_the_older_endings():
    lora = lora_of({"to_out": (4, 4), "proj_in": (4, 4)})
    names = {"unet.a.processor.to_out": Part.whole("to_out", 4), "unet.a.proj_in": Part.whole("proj_in", 4)}
    tensors = formats.to_file(lora, names, "diffusers")
    assert set(tensors) == {
        f"unet.a.{name}.{which}.weight" for name in ("processor.to_out_lora", "proj_in.lora") for which in ("down", "up")
    }
    assert_bit_for_bit(formats.from_file(tensors, names), lora)


def test_parts_that_share_nothing_are_stacked_exactly():
    """Of files that were trained on the split layers: each part has its own down and alpha."""
    q, v = lora_of({"q": (4, 8)}, rank=2, alpha=1.0, seed=1)["q"], lora_of({"v": (4, 8)}, rank=3, seed=2)["v"]
    tensors = {"transformer.to_q.lora_A.weight": q.down.detach(), "transformer.to_q.lora_B.weight": q.up.detach()}
    tensors |= {"transformer.to_q.alpha": torch.tensor(1.0)}
    tensors |= {"transformer.to_v.lora_A.weight": v.down.detach(), "transformer.to_v.lora_B.weight": v.up.detach()}
    lora = formats.from_file(tensors, NAMES)
    assert lora["qkv"].rank == 5
    expected = torch.cat([q.weight(), torch.zeros(4, 8), v.weight()]).double()
    assert torch.allclose(increments(lora)["qkv"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "names, message",
    [
        ({**NAMES, "transformer.conv": Part.whole("other", 5)}, r"layer conv, 5 rows, has no name in the dialect 'diffusers'"),
        ({name: part for name, part in NAMES.items() if name[-1] != "k"}, r"layer qkv, 12 rows"),
        ({**NAMES, "transformer.to_v": Part("qkv", 8, 16, 16)}, r"layer qkv"),
    ],
    ids=["no name", "a gap", "other sizes"],
)
def test_what_a_dialect_cannot_express_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        formats.to_file(lora_of(), names, "diffusers")


@pytest.mark.parametrize(
    "change, message",
    [
        ({f"transformer.to_x.lora_{which}.weight": torch.zeros(3, 3) for which in "AB"}, r"a layer 'transformer.to_x'"),
        ({"transformer.to_q.lora_B.weight": torch.zeros(5, 3)}, r"'transformer.to_q' has 5 rows, and this model's has 4"),
        ({"transformer.conv.diff_b": torch.zeros(5)}, r"'transformer.conv.diff_b' and 0 more that are no pair"),
        ({"transformer.conv.lokr_w1": torch.zeros(5)}, r"LoKr"),
    ],
    ids=["another layer", "another size", "bias", "LoKr"],
)
def test_a_file_that_is_not_of_this_model_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        formats.from_file(formats.to_file(lora_of(), NAMES, "diffusers") | change, NAMES)


def test_a_cast_that_overflows_is_refused_by_name():
    lora = lora_of()
    lora["final"].up.data[0, 0] = 1e6
    tensors = formats.to_file(lora, NAMES, "diffusers")
    assert formats.cast(tensors, torch.bfloat16)["transformer.norm_out.lora_B.weight"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"transformer.norm_out.lora_B.weight has numbers .*float16"):
        formats.cast(tensors, torch.float16)


# Merging and resizing


def test_a_merge_adds_what_its_loras_add():
    a, b = lora_of(alpha=1.5), lora_of({"qkv": (12, 8), "conv": (5, 3, 3, 3), "extra": (4, 4)}, rank=2, seed=1)
    merged, expected = formats.merge([(a, 0.7), (b, -0.4)]), {}
    for lora, weight in ((a, 0.7), (b, -0.4)):
        for path, added in increments(lora).items():
            expected[path] = expected.get(path, 0) + weight * added
    assert {path: adapter.rank for path, adapter in merged.items()} == {"qkv": 5, "final": 3, "conv": 5, "extra": 2}
    for path, added in increments(merged).items():
        assert torch.allclose(added, expected[path], rtol=0, atol=2e-6), path


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_lower_rank_comes_closer(path, rank):
    """Eckart and Young: the error is that of the singular values left out, here from an SVD of the dense increment."""
    lora = lora_of(rank=5, alpha=2.0)
    smaller, report = formats.resize(lora, rank=rank)
    before, after = (increments(each)[path].flatten(1) for each in (lora, smaller))
    values = torch.linalg.svdvals(before)
    assert smaller[path].rank == report[path].rank == rank
    assert smaller[path].scale == 1
    assert float((before - after).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-5)
    assert report[path].lost == pytest.approx(float(values[rank:].norm() / values.norm()), rel=1e-5)


@pytest.mark.parametrize("energy", [0.3, 0.7, 0.95, 1.0])
def test_the_lowest_rank_that_keeps_the_energy(energy):
    lora = lora_of(rank=5)
    smaller, report = formats.resize(lora, energy=energy)
    for path, added in increments(lora).items():
        squares = torch.linalg.svdvals(added.flatten(1)) ** 2
        rank, total = smaller[path].rank, squares.sum()
        assert squares[:rank].sum() >= energy * total * (1 - 1e-9)
        assert squares[: rank - 1].sum() < energy * total
        assert report[path].lost ** 2 <= 1 - energy + 1e-9


def test_a_merge_of_a_lora_with_itself_needs_no_more_rank():
    lora = lora_of()
    merged = formats.merge([(lora, 0.5), (lora, 0.5)], rank=3)
    for path, added in increments(merged).items():
        assert torch.allclose(added, increments(lora)[path], rtol=0, atol=1e-5)


def test_a_lora_that_changes_nothing_keeps_rank_1():
    lora = LoraSet({"a": Adapter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 4), 4)})
    smaller, report = formats.resize(lora, energy=0.9)
    assert smaller["a"].rank == 1 and report["a"].lost == 0 and not increments(smaller)["a"].any()


def test_a_sweep_multiplies_what_is_added():
    lora = lora_of(alpha=2.0)
    for strength, swept in formats.sweep(lora, [0.0, 0.5, 1.0, -2.0]).items():
        for path, added in increments(swept).items():
            assert torch.equal(added, strength * increments(lora)[path])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: formats.merge([]), "no LoRA to merge"),
        (lambda: formats.merge([(lora_of(), 1.0), (lora_of({"qkv": (12, 9)}), 1.0)]), r"qkv is \(12, 8\) in one .* \(12, 9\)"),
        (lambda: formats.merge([(lora_of(), float("nan"))]), "weight is nan"),
        (lambda: formats.sweep(lora_of(), []), "strengths is empty"),
        (lambda: formats.resize(lora_of(), rank=0), "rank is 0"),
        (lambda: formats.resize(lora_of(), energy=0.0), "energy is 0.0"),
        (lambda: formats.resize(lora_of(), energy=1.5), "energy is 1.5"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
