"""What a LoRA file says about itself, whether it is whole, and which model it is of."""

import json
from dataclasses import asdict

import pytest
import torch
from comfyui_distillery.distill import formats
from comfyui_distillery.distill.formats import Profile
from comfyui_distillery.distill.formats.profile import BASE, FIGURES, PROFILE, RECIPE
from comfyui_distillery.distill.lora import LoraSet
from safetensors.torch import save_file
from torch import nn

FOUR_STEPS = Profile(4, "lcm", (14.6, 6.0, 2.5, 0.8, 0.0), 1.0, 0.9, {"eta": 0.5})


def weights(seed=0, count=40):
    generator = torch.Generator().manual_seed(seed)
    matrices = {f"blocks.{i}.weight": 0.02 * torch.randn(48, 32, generator=generator) for i in range(count)}
    return {**matrices, "norm": torch.ones(8)}


def header(lora=None, dialect="core", **more):
    lora = lora or LoraSet.create({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}, 4, 2.0)
    base, recipe = formats.fingerprint("SDXL", weights()), {"method": "consistency", "seed": 7}
    given = {"title": "four steps", "pack": "0.1.0", "licence": "openrail++", "figures": {"fid": 12.5}, **more}
    return formats.metadata(lora, dialect, FOUR_STEPS, base, recipe, **given)


def saved(folder, text):
    """A file whose header has this text as its profile."""
    save_file({"a": torch.zeros(1)}, folder / "a.safetensors", {PROFILE: text})
    return folder / "a.safetensors"


# Files


def test_a_file_holds_what_was_written(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    formats.write(path, tensors, {"key": "value"})
    read, metadata = formats.read(path)
    assert all(torch.equal(read[key], tensors[key]) and read[key].dtype == tensors[key].dtype for key in tensors)
    assert metadata == {"key": "value"}
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_a_disk_that_is_full_costs_nothing_that_was_there(tmp_path):
    """The system refuses to let a file of this process grow beyond 4 kB, as a full disk does."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.safetensors"
    formats.write(path, {"a": torch.ones(2)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a.safetensors could not be written: .*[Ff]ile too large"):
            formats.write(path, {"a": torch.ones(4096)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(formats.read(path)[0]["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name, checked",
    [
        ("turbo", "turbo.safetensors"),
        ("my models/turbo.safetensors", "my models/turbo.safetensors"),
        ("a\\b", "a/b.safetensors"),
        (" ./turbo ", "turbo.safetensors"),
    ],
)
def test_a_name_within_the_folder_is_taken(name, checked):
    assert formats.checked_name(name) == checked


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "empty"),
        ("  ", "empty"),
        ("/etc/turbo", "absolute"),
        ("C:\\turbo", "absolute"),
        ("C:turbo", "absolute"),
        ("\\\\server\\share\\turbo", "absolute"),
        ("../turbo", "would leave"),
        ("a/../../turbo", "would leave"),
        ("a\\..\\..\\turbo", "would leave"),
        ("turbo.ckpt", "end the name in .safetensors"),
        ("turbo v1.2", "end the name in .safetensors"),
        ("what?", "cannot hold"),
        ("a\0b", "cannot hold"),
        ("a./turbo", "end in a dot"),
    ],
)
def test_a_name_that_leaves_the_folder_or_is_none_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        formats.checked_name(name)


def test_what_is_no_safetensors_file_is_said_to_be_none(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"<html>not found</html>")
    for call in (formats.read, formats.read_profile):
        with pytest.raises(ValueError, match=r"a.safetensors is no safetensors file"):
            call(tmp_path / "a.safetensors")


# Profiles and the rest of the header


def test_the_header_comes_back(tmp_path):
    formats.write(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, header())
    path = tmp_path / "a.safetensors"
    assert formats.read_profile(path) == FOUR_STEPS
    assert formats.read_json(path, RECIPE) == {"method": "consistency", "seed": 7}
    assert formats.read_json(path, FIGURES) == {"fid": 12.5}
    assert formats.difference(formats.read_json(path, BASE), formats.fingerprint("SDXL", weights())) is None


def test_other_tools_find_their_keys():
    texts = header()
    assert (texts["ss_network_dim"], texts["ss_network_alpha"]) == ("4", "2")
    assert texts["ss_base_model_version"] == "sdxl_base_v1-0"
    assert texts["ss_network_module"] == "networks.lora"
    assert texts["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert texts["modelspec.usage_hint"] == "4 steps, sampler lcm, CFG 1, LoRA strength 0.9."
    assert all(isinstance(text, str) for text in texts.values())
    assert header(dialect="diffusers")["ss_network_alpha"] == "4"  # folded into the weights
    mixed = LoraSet.create({"a": nn.Linear(8, 8), "b": nn.Linear(2, 2)}, 4)
    assert header(mixed)["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 4.0}, "steps is 4.0"),
        ({"steps": True}, "steps is True"),
        ({"steps": 3}, "sigmas has 5 values: 3 steps need 4"),
        ({"sampler": ""}, "sampler is ''"),
        ({"sampler": None}, "sampler is None"),
        ({"sigmas": (1.0, 2.0, 0.5, 0.2, 0.0)}, r"sigmas\[0\] is 1 and sigmas\[1\] is 2"),
        ({"sigmas": (1.0, "x", 0.5, 0.2, 0.0)}, "sigmas is .* list of numbers"),
        ({"sigmas": (float("inf"), 1.0, 0.5, 0.2, 0.0)}, "finite"),
        ({"cfg": -1.0}, "cfg is -1.0"),
        ({"cfg": "1"}, "cfg is '1'"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"knobs": {"eta": [1]}}, "knobs is"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_by_name_alone_and_in_a_file(change, message, tmp_path):
    recorded = asdict(FOUR_STEPS) | change
    with pytest.raises(ValueError, match=message):
        Profile(**recorded)
    with pytest.raises(ValueError, match=r"the sampling profile of .*a.safetensors is not valid: "):
        formats.read_profile(saved(tmp_path, json.dumps(recorded)))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "holds distillery.profile that is not JSON"),
        ("[]", "it has no steps"),
        ("4", "is not valid"),
        ('{"steps": 4, "sampler": "lcm", "sigmas": 5, "cfg": 1}', "is not valid"),
        ('{"steps": 4, "sampler": "lcm", "cfg": 1}', "it has no sigmas"),
        (json.dumps(asdict(FOUR_STEPS) | {"window": 3}), "'window', which this version does not know"),
    ],
)
def test_a_damaged_profile_says_what_is_wrong(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        formats.read_profile(saved(tmp_path, text))


def test_a_file_of_another_program_has_no_profile(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has no sampling profile"):
        formats.read_profile(tmp_path / "a.safetensors")


# Fingerprints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cast_and_another_order_are_the_same_model(dtype):
    recorded = json.loads(json.dumps(formats.fingerprint("SDXL", weights())))
    present = {name: weight.to(dtype) for name, weight in reversed(weights().items())}
    assert formats.difference(recorded, formats.fingerprint("SDXL", present)) is None


def test_a_change_of_two_percent_is_another_checkpoint():
    recorded, present = formats.fingerprint("SDXL", weights()), weights()
    generator = torch.Generator().manual_seed(9)
    for weight in present.values():
        weight += 0.02 * weight.norm() / weight.numel() ** 0.5 * torch.randn(weight.shape, generator=generator)
    found = formats.difference(recorded, formats.fingerprint("SDXL", present))
    assert found.startswith("its weights differ by ")
    assert 1.5 < float(found.split()[-1].rstrip("%")) < 2.5


@pytest.mark.parametrize(
    "architecture, present, message",
    [
        ("SD15", weights(), "its architecture is SD15, not SDXL"),
        ("SDXL", weights(count=41), "its layers have other names or shapes"),
        ("SDXL", {name: weight[:-1] for name, weight in weights().items()}, "its layers have other names or shapes"),
        ("SDXL", weights(seed=1), "its weights differ by"),
    ],
)
def test_what_differs_is_said(architecture, present, message):
    assert message in formats.difference(formats.fingerprint("SDXL", weights()), formats.fingerprint(architecture, present))
