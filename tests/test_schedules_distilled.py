"""The timesteps of distilled models against diffusers' schedulers and the papers."""

import math

import pytest
import torch
from comfyui_distillery.samplers.path import Path
from comfyui_distillery.samplers.schedules import SCHEDULES

from .problems import EPS, FLOW, assert_close, number
from .test_schedules_timesteps import flow_table, scheduled, vp_table

diffusers = pytest.importorskip("diffusers")

lcm, scm = SCHEDULES["lcm_timesteps"], SCHEDULES["scm_timesteps"]


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("original", [50, 10, 100])
def test_lcm_timesteps_are_diffusers_at_every_number_of_steps(original, scheduler):
    theirs = getattr(diffusers, scheduler)(original_inference_steps=original)
    for n in range(1, original + 1):
        theirs.set_timesteps(n)
        expected = torch.cat([vp_table()[theirs.timesteps], number([0.0])]).float()
        assert torch.equal(scheduled("lcm_timesteps", n, EPS, vp_table(), original_steps=original), expected), n


def test_lcm_timesteps_of_a_table_that_holds_only_these_are_the_same():
    """As core's ModelSamplingDiscrete makes it for LCM: 50 of 1000."""
    for n in (1, 4, 7):
        few = scheduled("lcm_timesteps", n, EPS, vp_table()[19::20])
        assert torch.equal(few, scheduled("lcm_timesteps", n, EPS, vp_table()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_lcm_timesteps_on_flow_are_those_of_pcm_for_sd3(shift):
    """Written out after PCM's flow matching scheduler: every 20th of the shifted times 1/1000 to 1, evenly picked from the last."""
    times = (torch.arange(1, 51) * 20).flip(0)[[0, 12, 25, 37]].double() / 1000
    ours = scheduled("lcm_timesteps", 4, FLOW, flow_table(shift))
    assert_close(ours[:-1].double(), shift * times / (1 + (shift - 1) * times), 1e-6)


def test_dmd2_and_add_have_the_trailing_timesteps():
    """DMD2's 999, 749, 499, 249, and what SDXL-Turbo's pipeline sets at 4 and at 1 steps."""
    theirs = diffusers.LCMScheduler()
    theirs.set_timesteps(timesteps=[999, 749, 499, 249])
    ours = scheduled("trailing", 4, EPS, vp_table())
    assert torch.equal(ours[:-1], vp_table()[theirs.timesteps].float())
    turbo = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    for n in (4, 1):
        turbo.set_timesteps(n)
        assert torch.equal(scheduled("trailing", n, EPS, vp_table())[:-1], vp_table()[turbo.timesteps.long()].float())


def angles(n, **options):
    theirs = diffusers.SCMScheduler()
    theirs.set_timesteps(n, **{"intermediate_timesteps": None} | options)
    return theirs.timesteps.double().clamp(max=math.pi / 2)


@pytest.mark.parametrize("n", [1, 3, 4, 16])
def test_scm_timesteps_are_diffusers_and_the_change_of_variables_is_sana_sprints(n):
    t = angles(n)
    assert_close(scm(n, 0.003, 1.0, path=FLOW).double(), t.sin() / (t.sin() + t.cos()), 3e-6)
    below = angles(n, max_timesteps=math.atan(80.0))
    assert_close(scm(n, 0.01, 80.0, path=EPS).double(), below.tan(), 1e-5)


def test_two_steps_go_by_way_of_the_middle_angle():
    t = angles(2, intermediate_timesteps=1.3)
    assert_close(scm(2, 0.003, 1.0, path=FLOW).double(), t.sin() / (t.sin() + t.cos()), 1e-6)
    assert_close(scm(2, 0.003, 1.0, path=FLOW, middle_angle=1.1)[1].double(), number(math.tan(1.1) / (1 + math.tan(1.1))), 1e-6)


def test_on_edm_noise_is_measured_in_stds_of_the_data():
    """sCM's paper: sigma_max 80 and sigma_data 0.5 begin at arctan(160), and its middle, 1.1, is a noise of 0.5 tan(1.1)."""
    ours = scm(2, 0.002, 80.0, path=Path("edm", sigma_data=0.5), middle_angle=1.1)
    assert torch.allclose(ours, torch.tensor([80.0, 0.5 * math.tan(1.1), 0.0]), rtol=1e-6)


def test_a_run_from_lower_noise_begins_there():
    assert scm(3, 0.003, 0.6, path=FLOW)[0] == pytest.approx(0.6)
    assert scm(3, 0.003, 1.0, path=FLOW, max_angle=1.0)[0] == pytest.approx(math.tan(1.0) / (1 + math.tan(1.0)))


@pytest.mark.parametrize(
    "message, n, knobs",
    [
        ("steps / denoise is 51, and original_steps 50: .* Lower steps", 51, {}),
        ("original_steps is 1000, and this model has 999 timesteps. Lower original_steps", 4, {"original_steps": 1000}),
        ("original_steps is 0: it must be a whole number from 1", 4, {"original_steps": 0}),
    ],
)
def test_bad_lcm_timesteps(message, n, knobs):
    with pytest.raises(ValueError, match=message):
        scheduled("lcm_timesteps", n, EPS, vp_table()[1:], **knobs)


def test_a_middle_above_the_start_is_refused():
    with pytest.raises(ValueError, match="middle_angle is 1.3, and the run begins at 0.98.*: middle_angle must be smaller"):
        scm(2, 0.003, 0.6, path=FLOW)
