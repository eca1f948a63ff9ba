"""The noise levels of distilled models, against the schedulers and pipelines of diffusers that the profiles were published with."""

import ast
import math
import pathlib
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.turbo import PROFILES, PUBLISHED, sigmas_of

from .test_schedules_timesteps import BETAS, flow_table, vp_table

diffusers = pytest.importorskip("diffusers")
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
    TCDScheduler,
)


def published(file, name):
    """A function or constant of a pipeline's file: the pipelines themselves need text encoders, and more packages, to import."""
    source = (pathlib.Path(diffusers.__file__).parent / "pipelines" / file).read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        named = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if getattr(node, "name", None) == name or name in named:
            found = {}
            exec(textwrap.dedent(ast.get_source_segment(source, node, padded=True)), found)  # noqa: S102  diffusers' own source
            return found[name]
    raise LookupError(f"{file} has no {name}")


compute_empirical_mu = published("flux2/pipeline_flux2_klein.py", "compute_empirical_mu")
DISTILLED_SIGMA_VALUES = published("ltx2/utils.py", "DISTILLED_SIGMA_VALUES")
PARTS = {  # is_flow: get_timesteps of an image-to-image pipeline
    False: published("stable_diffusion_xl/pipeline_stable_diffusion_xl_img2img.py", "get_timesteps"),
    True: published("flux/pipeline_flux_img2img.py", "get_timesteps"),
}

TABLE = vp_table()
STRENGTHS = [0.25, 0.3, 0.5, 0.6, 0.8, 1.0]
TOKENS = 2304  # 768 x 768


def setting(profile):
    """(path, table) of a model that the profile is for. The table of a flow model is in use where the profile has no shift."""
    if profile.is_flow:
        return Path("flow"), flow_table(3.0)
    if profile.prediction == "cosmos":
        return Path("cosmos", sigma_data=1.0), None
    return Path("v" if profile.prediction == "v" else "eps", log_sigmas=TABLE.log()), TABLE


def ours(profile, steps, denoise=1.0, tokens=TOKENS):
    return sigmas_of(profile, steps, *setting(profile), denoise, tokens)


def at(timesteps):
    """The levels at whole timesteps of Stable Diffusion's table, and 0."""
    return torch.cat([TABLE[timesteps.long()], TABLE.new_zeros(1)]).float()


def with_spacing(*spacings, sampler=None, is_flow=None, trained=None):
    return [
        pytest.param(profile, steps, id=f"{profile.key}-{steps}")
        for profile in PROFILES.values()
        for steps in profile.steps
        if profile.spacing in spacings and sampler in (None, profile.sampler) and is_flow in (None, profile.is_flow) and trained in (None, profile.trained)
    ]


# The timesteps of a whole run


@pytest.mark.parametrize("profile, steps", with_spacing("trailing", is_flow=False))
def test_trailing_profiles_visit_the_timesteps_of_euler_and_ddim(profile, steps):
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler):
        theirs = scheduler(**BETAS, timestep_spacing="trailing")
        theirs.set_timesteps(steps)
        assert torch.equal(ours(profile, steps), at(theirs.timesteps))


@pytest.mark.parametrize("key", ["sd-turbo", "sdxl-turbo"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_levels_of_add_are_those_of_trailing(key, steps):
    theirs = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert torch.equal(ours(PROFILES[key], steps), at(theirs.timesteps))
    assert torch.allclose(ours(PROFILES[key], steps), theirs.sigmas, rtol=2e-5, atol=0)  # its betas are float32


@pytest.mark.parametrize("denoise", [0.4, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("scheduler, sampler", [(LCMScheduler, "lcm"), (TCDScheduler, "tcd")])
def test_lcm_and_tcd_profiles_visit_their_schedulers_timesteps_at_any_strength(scheduler, sampler, denoise):
    cases = [case.values for case in with_spacing("lcm", sampler=sampler)]
    assert cases
    for profile, steps in cases:
        theirs = scheduler(**BETAS)
        theirs.set_timesteps(steps, strength=denoise)
        assert torch.equal(ours(profile, steps, denoise), at(theirs.timesteps)), profile.key


@pytest.mark.parametrize(
    "key, denoise",
    [("dmd2-sdxl", 0.25), ("dmd2-sdxl", 0.5), ("dmd2-sdxl", 0.75), ("dmd2-sdxl", 1.0), ("dmd2-sdxl-1step", 1.0), ("hyper-sdxl-1step", 1.0)],
)
def test_custom_timesteps_are_what_lcm_scheduler_makes_of_them(key, denoise):
    profile = PROFILES[key]
    steps = profile.default_steps
    theirs = LCMScheduler(**BETAS)
    theirs.set_timesteps(timesteps=[int(point) for point in profile.points[steps]], strength=denoise)
    assert torch.equal(ours(profile, steps, denoise), at(theirs.timesteps))


@pytest.mark.parametrize("profile, steps", with_spacing("trailing", is_flow=True))
@pytest.mark.parametrize("tokens", [256, 4096, 10000])
def test_flow_profiles_have_the_sigmas_of_flow_match_euler(profile, steps, tokens):
    mu = mu_of(profile, tokens, steps)
    if mu is not None:
        theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    else:
        theirs = FlowMatchEulerDiscreteScheduler(shift=profile.shift or 3.0)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert torch.allclose(ours(profile, steps, tokens=tokens), theirs.sigmas, rtol=1e-6, atol=0)


def mu_of(profile, tokens, steps):
    """As the pipelines of Flux and Flux.2 compute it; None where the shift is one number."""
    kind = getattr(profile.shift, "kind", None)
    if kind == "flux2":
        return compute_empirical_mu(tokens, steps)
    if kind == "linear mu":
        slope = (1.15 - 0.5) / (4096 - 256)
        return slope * tokens + 0.5 - slope * 256
    return None


@pytest.mark.parametrize("profile, steps", with_spacing("linspace"))
def test_sd3_profiles_have_the_sigmas_of_a_pipeline_that_gives_none(profile, steps):
    theirs = FlowMatchEulerDiscreteScheduler(shift=profile.shift)
    theirs.set_timesteps(steps)
    assert torch.allclose(ours(profile, steps), theirs.sigmas, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("profile, steps", with_spacing("beta"))
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_beta_profiles_have_the_beta_sigmas_of_flow_match_euler(profile, steps, shift):
    pytest.importorskip("scipy")
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, use_beta_sigmas=True)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    assert torch.allclose(ours(replace(profile, shift=shift), steps), theirs.sigmas, rtol=1e-6, atol=0)


def test_flux2_turbo_levels_are_shifted_by_size():
    profile = PROFILES["flux2-turbo"]
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.array(profile.points[8]), mu=compute_empirical_mu(4096, 8))
    assert torch.allclose(ours(profile, 8, tokens=4096), theirs.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sana_sprint_has_the_angles_of_scm(steps):
    theirs = SCMScheduler()
    theirs.set_timesteps(steps, **({} if steps == 2 else {"intermediate_timesteps": None}))
    angles = theirs.timesteps.double()
    sigmas = (angles.sin() / (angles.sin() + angles.cos())).clamp(max=1)  # its first angle is a little above a right one
    assert torch.allclose(ours(PUBLISHED["sana-sprint"], steps), sigmas.float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("key", ["ltx2-distilled", "ltxv-distilled"])
def test_ltx_has_the_published_list(key):
    assert ours(PROFILES[key], 8).tolist() == pytest.approx([*DISTILLED_SIGMA_VALUES, 0.0])


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_rcm_levels_are_its_angles_on_both_paths(steps):
    angles = torch.tensor([math.atan(80), 1.5, 1.4, 1.0][:steps], dtype=torch.float64)
    zero = torch.zeros(1)
    flow = torch.cat([(angles.tan() / (1 + angles.tan())).float(), zero])
    assert torch.allclose(ours(PROFILES["rcm-wan21"], steps), flow, rtol=1e-6)
    assert torch.allclose(ours(PROFILES["rcm-cosmos"], steps), torch.cat([angles.tan().float(), zero]), rtol=1e-5)


def test_wan_levels_are_those_its_authors_name_and_split_in_the_middle():
    for key in ("wan22-t2v-lightx2v", "wan22-i2v-lightx2v"):
        sigmas = ours(PROFILES[key], 4)
        assert (sigmas * 1000).tolist() == pytest.approx([1000, 937.5, 833.3333, 625, 0])
        assert (sigmas >= PROFILES[key].boundary).tolist() == [True, True, False, False, False]


# Part of a run, for image to image


@pytest.mark.parametrize("profile, steps", with_spacing("trailing", "linspace", "beta", trained="any"))
def test_a_part_is_what_the_image_to_image_pipeline_takes(profile, steps):
    full = ours(profile, steps)
    for denoise in STRENGTHS:
        scheduler = SimpleNamespace(timesteps=full[:-1], order=1)
        theirs, count = PARTS[profile.is_flow](SimpleNamespace(scheduler=scheduler), steps, denoise, None)
        if count == 0:
            with pytest.raises(ValueError, match="Raise denoise"):
                ours(profile, steps, denoise)
        else:
            assert torch.equal(ours(profile, steps, denoise)[:-1], theirs)


@pytest.mark.parametrize(
    "key, steps, denoise, timesteps",
    [
        ("dmd2-sdxl", 4, 0.5, [499, 249]),
        ("dmd2-sdxl", 4, 0.74, [499, 249]),
        ("dmd2-sdxl", 4, 0.75, [749, 499, 249]),
        ("sdxl-turbo", 2, 0.5, [499]),
        ("sdxl-turbo", 4, 0.5, [499, 249]),
        ("sdxl-lightning", 8, 0.5, [499, 374, 249, 124]),
        ("sdxl-lightning", 4, 0.3, [249]),
    ],
)
def test_listed_students_get_trained_levels_at_or_below_the_share(key, steps, denoise, timesteps):
    assert torch.equal(ours(PROFILES[key], steps, denoise), at(torch.tensor(timesteps)))


def test_a_recorded_run_is_cut_by_the_models_own_time():
    profile = PROFILES["shapes-turbo-dit"]  # 1, 0.9, 0.75, 0.5: even times at its shift of 3
    assert ours(profile, 4, 0.5).tolist() == pytest.approx([0.75, 0.5, 0])
    unet = PROFILES["shapes-turbo-unet"]
    assert ours(unet, 4, 0.5).tolist() == pytest.approx([*unet.points[4][2:], 0])
    assert sigmas_of(profile, 4, Path("flow"), None, 0.5).tolist() == pytest.approx([0.5, 0])  # no table: by sigma itself


@pytest.mark.parametrize("key", PROFILES)
def test_every_part_of_every_run_falls_to_0_and_listed_levels_stay_listed(key):
    profile = PROFILES[key]
    for steps in profile.steps:
        full = ours(profile, steps).tolist()
        assert len(full) == steps + 1 and full[-1] == 0
        for denoise in STRENGTHS:
            try:
                part = ours(profile, steps, denoise).tolist()
            except ValueError as error:
                assert "denoise" in str(error) and denoise < 1
                continue
            assert part == sorted(part, reverse=True) and part[-1] == 0
            assert profile.trained == "any" or set(part) <= set(full)


# What a user can get wrong


@pytest.mark.parametrize(
    "key, steps, denoise, message",
    [
        ("dmd2-sdxl", 5, 1.0, "steps is 5, and the profile dmd2-sdxl offers 4"),
        ("sdxl-lightning", 3, 1.0, "offers 2, 4 and 8"),
        ("lcm-lora-sdxl", 9, 1.0, "offers 1 to 8"),
        ("dmd2-sdxl", 4, 0.0, "denoise is 0"),
        ("dmd2-sdxl", 4, 1.5, "denoise is 1.5"),
        ("dmd2-sdxl", 4, 0.2, "Raise denoise to 0.25"),
        ("hyper-sdxl", 2, 0.4, "Raise denoise to 0.5 or more, or steps"),
        ("lcm-lora-sdxl", 8, 0.1, "raise denoise to 0.16"),
        ("dmd2-sdxl-1step", 1, 0.85, "denoise is 0.85: .* of noise alone"),
        ("hyper-sdxl-1step", 1, 0.99, "Set denoise to 1 on an empty latent"),
    ],
)
def test_errors_name_what_is_offered(key, steps, denoise, message):
    with pytest.raises(ValueError, match=message):
        ours(PROFILES[key], steps, denoise)


def test_errors_name_both_kinds_of_model_and_what_is_missing():
    flow, eps = (Path("flow"), flow_table(3.0)), (Path("eps"), TABLE)
    with pytest.raises(ValueError, match="dmd2-sdxl is for a model that predicts eps, and this one predicts flow"):
        sigmas_of(PROFILES["dmd2-sdxl"], 4, *flow)
    with pytest.raises(ValueError, match="flux-schnell is for a model that predicts flow, and this one predicts eps"):
        sigmas_of(PROFILES["flux-schnell"], 4, *eps)
    with pytest.raises(ValueError, match="this model has none"):
        sigmas_of(PROFILES["dmd2-sdxl"], 4, Path("edm"), None)
    with pytest.raises(ValueError, match="Connect latent"):
        sigmas_of(PROFILES["hyper-flux"], 8, *flow)
