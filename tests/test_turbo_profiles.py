"""Every profile is whole and says where it is from, a broken one is refused by the name of its field, and the table is up to date."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_distillery.distill.formats import read_profile
from comfyui_distillery.samplers.solvers import SOLVERS
from comfyui_distillery.samplers.turbo import BASES, PROFILES, PUBLISHED, TurboProfile, from_entry, load
from comfyui_distillery.samplers.turbo.profile import Shift

from tools import turbo_table

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "samplers" / "turbo" / "profiles").glob("*.json"))
OF_CORE = {"euler", "euler_ancestral", "heun", "lcm", "uni_pc"}  # what profiles use of ComfyUI's list; tests/host looks at the list
FAMILIES = {  # keys that must be there
    "ADD": ["sd-turbo", "sdxl-turbo"],
    "LADD": ["sd3-turbo", "sd3.5-large-turbo", "flux-schnell"],
    "LCM": ["lcm-sd15", "lcm-sdxl", "lcm-ssd-1b", "lcm-lora-sd15", "lcm-lora-sdxl", "lcm-lora-ssd-1b"],
    "TCD": ["tcd-sd15", "tcd-sd21", "tcd-sdxl"],
    "Hyper-SD": ["hyper-sd15", "hyper-sd15-unified", "hyper-sd15-cfg", "hyper-sdxl", "hyper-sdxl-cfg", "hyper-sd3-cfg", "hyper-flux"],
    "Lightning": ["sdxl-lightning", "sdxl-lightning-1step"],
    "DMD2": ["dmd2-sdxl", "dmd2-sdxl-1step", "dmd2-sd15"],
    "PCM": ["pcm-sd15-smallcfg", "pcm-sdxl-smallcfg", "pcm-sdxl-normalcfg", "pcm-sdxl-stochastic"],
    "Flash": ["flash-sd15", "flash-sdxl", "flash-sd3", "flash-pixart"],
    "rectified": ["instaflow", "rectified-diffusion-sd15"],
    "one step": ["swiftbrush-sd21", "sid-lsg-sd15", "sid-lsg-sd21"],
    "consistency": ["sana-sprint", "rcm-wan21", "rcm-wan21-1.3b", "rcm-cosmos"],
    "Flux.2": ["flux2-klein-4b", "flux2-klein-9b"],
    "Qwen-Image, Z-Image": ["qwen-image-lightning", "z-image-turbo"],
    "Wan": ["wan21-lightx2v", "wan22-t2v-lightx2v", "wan22-i2v-lightx2v", "causvid-wan21", "self-forcing-wan21-1.3b"],
    "video and others": ["ltxv-distilled", "ltx2-distilled", "hunyuan-fast", "chroma-flash"],
    "ours": ["shapes-turbo-dit", "shapes-turbo-unet"],
}


def entry(**changes):
    whole = {
        "key": "some-turbo", "title": "Some Turbo", "base": "sdxl", "prediction": "eps", "form": "lora", "steps": [4], "default_steps": 4,
        "timesteps": {"4": [999, 749, 499, 249]}, "sampler": "lcm", "cfg": 1, "licence": "MIT", "sources": ["arXiv:0000.00000"],
    }  # fmt: skip
    return {name: value for name, value in (whole | changes).items() if value is not ...}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_issue_is_there(family):
    assert set(FAMILIES[family]) <= set(PUBLISHED)


@pytest.mark.parametrize("key", PUBLISHED)
def test_every_profile_is_whole(key):
    profile = PUBLISHED[key]
    assert profile.key == key and (profile.names or profile.unavailable)
    assert any(re.search(r"arXiv:\d{4}\.\d{5}|model card|ComfyUI template|metadata", source) for source in profile.sources)
    assert profile.sampler in SOLVERS or profile.sampler in OF_CORE
    assert BASES[profile.base].core or profile.unavailable
    if profile.sampler in SOLVERS:
        known = {knob.name: knob for knob in SOLVERS[profile.sampler].knobs}
        assert all(known[name].allows(value) for name, value in profile.knobs.items())
    if not profile.unavailable:
        natural = {"eps": ("eps", "x0", "v"), "flow": ("flow",), "cosmos": ("cosmos",)}[BASES[profile.base].prediction]
        assert profile.prediction in natural
    assert profile.own_files <= any("(?P<steps>" in name for name in profile.names)


def test_what_comfyui_cannot_sample_is_published_and_not_offered():
    assert set(PUBLISHED) - set(PROFILES) == {"sd3-turbo", "instaflow", "sana-sprint"}


def test_titles_and_keys_are_each_for_one_profile():
    assert len({profile.title for profile in PUBLISHED.values()}) == len(PUBLISHED)
    entries = [each for file in FILES for each in json.loads(file.read_text("utf-8"))]
    assert len(entries) == len(PUBLISHED)


def test_a_key_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps([entry()]), "utf-8")
    with pytest.raises(ValueError, match="some-turbo: it is in two.json and was read before"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"key": "Some Turbo"}, "key"),
        ({"title": ""}, "title"),
        ({"licence": " "}, "licence"),
        ({"licence": ...}, "missing field licence"),
        ({"stepz": 4}, "unknown field stepz"),
        ({"base": "sdxxl"}, "base is 'sdxxl'"),
        ({"prediction": "epsilon"}, "prediction"),
        ({"form": "file"}, "form"),
        ({"sources": []}, "sources"),
        ({"steps": []}, "steps"),
        ({"steps": [4, 4]}, "steps"),
        ({"steps": [0, 4]}, "steps"),
        ({"default_steps": 8}, "default_steps"),
        ({"trained": "some"}, "trained"),
        ({"cfg": -1}, "cfg"),
        ({"cfg": float("nan")}, "cfg"),
        ({"cfg": "1"}, "cfg"),
        ({"cfg": 2}, "cfg_range"),
        ({"cfg_range": [2, 1]}, "cfg_range"),
        ({"negative": True}, "negative"),
        ({"strength": 0}, "strength"),
        ({"strength": float("inf")}, "strength"),
        ({"guidance": -1}, "guidance"),
        ({"shift": 3.0}, "shift"),
        ({"shift": {"kind": "flux2"}}, "shift"),
        ({"shift": {"kind": "cubic"}}, "shift is of kind 'cubic'"),
        ({"boundary": 0.875}, "boundary"),
        ({"names": ["("]}, "names"),
        ({"names": ["SDXL"]}, "names"),
        ({"unconfirmed": ["colour"]}, "unconfirmed"),
        ({"spacing": "trailing"}, "spacing"),
        ({"timesteps": ...}, "spacing"),
        ({"timesteps": ..., "spacing": "even"}, "spacing"),
        ({"timesteps": ..., "spacing": "linspace"}, "spacing"),
        ({"timesteps": {"8": [999]}}, "points"),
        ({"timesteps": {"4": [999, 749, 499]}}, "points"),
        ({"timesteps": {"4": [249, 499, 749, 999]}}, "points"),
        ({"timesteps": {"4": [1000, 749, 499, 249]}}, "points"),
        ({"timesteps": {"4": [998.5, 749, 499, 249]}}, "points"),
        ({"timesteps": ..., "levels": {"4": [1, 0.75, 0.5, 0.25]}}, "unit"),
        ({"base": "flux", "prediction": "flow"}, "unit"),
        ({"base": "flux", "prediction": "flow", "timesteps": ..., "levels": {"4": [1.2, 0.75, 0.5, 0.25]}}, "points"),
        ({"base": "flux", "prediction": "flow", "timesteps": ..., "levels": {"4": [1, 0.75, 0.5, 0]}}, "points"),
        ({"base": "flux", "prediction": "flow", "timesteps": ..., "spacing": "trailing", "shift": 0}, "shift"),
        ({"base": "flux", "prediction": "flow", "timesteps": ..., "spacing": "trailing", "boundary": 1}, "boundary"),
        ({"base": "flux", "prediction": "flow", "timesteps": ..., "spacing": "lcm"}, "spacing"),
    ],
)
def test_a_broken_profile_is_refused_by_the_name_of_its_field(changes, message):
    from_entry(entry())
    with pytest.raises(ValueError, match=rf"^(turbo profile \S.*: )?.*{re.escape(message)}"):
        from_entry(entry(**changes))


def test_the_shift_goes_by_size_where_the_profile_says_so():
    flux = PROFILES["hyper-flux"]
    assert flux.shift_at(4096, 8) == pytest.approx(torch.tensor(1.15).exp().item())
    assert flux.shift_at(256, 8) == pytest.approx(torch.tensor(0.5).exp().item())
    assert replace(flux, shift=3.0).shift_at(None, 8) == 3.0 and replace(flux, shift=None).shift_at(None, 8) is None
    with pytest.raises(ValueError, match="Connect latent"):
        flux.shift_at(None, 8)
    with pytest.raises(ValueError, match="max_tokens 256: it must be above base_tokens"):
        Shift("linear mu", max_tokens=256)


@pytest.mark.parametrize("net", ["dit", "unet"])
def test_the_bundled_students_have_the_numbers_of_their_files(net):
    profile, recorded = PROFILES[f"shapes-turbo-{net}"], read_profile(ROOT / "models" / f"shapes-turbo-{net}.safetensors")
    made = TurboProfile.recorded(recorded, f"shapes-{net}")
    same = ("steps", "default_steps", "base", "prediction", "sampler", "knobs", "cfg", "strength", "points", "unit", "trained", "negative")
    assert [getattr(made, name) for name in same] == [getattr(profile, name) for name in same]


# docs/turbo.md


def test_the_table_in_the_guide_is_up_to_date():
    assert turbo_table.PAGE.read_text("utf-8") == turbo_table.page(), "run python -m tools.turbo_table"


def test_the_guide_names_every_profile_its_sources_and_what_is_not_confirmed():
    text = turbo_table.page()
    for profile in PUBLISHED.values():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{profile.key}` |")]
        assert all(source in row for source in profile.sources) and profile.licence in row
        assert all(name in row for name in profile.unconfirmed)
        assert profile.unavailable in row
