"""What the tests of caching share: runs of a policy with measurements that are given."""

from dataclasses import replace

from comfyui_distillery.samplers.caching import POLICIES
from comfyui_distillery.samplers.caching.policy import Step

from .problems import randn

FREE = {"first_steps": 1, "last_steps": 0, "most_in_a_row": 0, "min_steps": 1}  # the policy alone
INVITING = {
    "input_change": 0.0, "signal_since_run": 0.0, "signal_since_step": 0.0, "residual_ratio": 1.0,
    "output_change": 0.0, "run_input_change": 1.0, "forecast_error": 0.0, "speed": 1.0,
}  # fmt: skip


def follow(
    policy, steps, measured=lambda index, last: INVITING, latents=lambda sigma: (randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1))
):
    """The decisions of a run. measured(index, last evaluated index or None) is what is known at a step.

    latents(sigma): (slope, constant) of a trajectory that is a line in sigma.
    """
    last, decisions = None, []
    for index in range(steps):
        sigma = 1 - index / steps
        slope, constant = latents(sigma)
        x = constant + sigma * slope
        step = Step(index, steps, sigma, sigma_next=1 - (index + 1) / steps, **measured(index, last))
        off = policy.observe(x, None, sigma)
        step = replace(step, latent_error=None if off is None else float(off), forecast_distance=last is not None and index - last)
        decisions.append(policy.decide(step))
        if decisions[-1]:
            policy.observe(x, slope, sigma)
            policy.ran(step)
            last = index
        else:
            policy.skipped(step)
    return decisions


def begin(key, steps=20, **knobs):
    return POLICIES[key].begin(knobs, **({"mask": (False,) * steps} if key == "mask" else {}))


def evaluated(decisions):
    return [index for index, ran in enumerate(decisions) if ran]
