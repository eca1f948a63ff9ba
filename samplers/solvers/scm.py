"""sCM: multistep consistency sampling in TrigFlow. Lu and Song 2024, arXiv:2410.11081; SANA-Sprint, arXiv:2503.09641.

In TrigFlow x = cos(t) x0 + sin(t) n, tan(t) being noise over signal, and a step is cos(t') denoised + sin(t') n. The change of
variables is exact on every path, so on flow, SANA-Sprint's equation 4, this is lcm; the angles are a schedule, ``scm_timesteps``.
"""

import torch

from ..core import Knob, march
from ..noise import from_seed
from .solver import Solver


def sample_scm(model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, s_noise=1.0):
    """All noise is new at every step: no limit of many steps, hence order 0."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)

    def step(i, x, denoised, sigma, sigma_next):
        angle = torch.atan2(sigma_next, path.alpha(sigma_next))
        noise = s_noise * noise_sampler(sigma, sigma_next)
        x, _ = path.from_vp(angle.cos() * denoised + angle.sin() * noise, angle.cos(), angle.sin())
        return x

    return march(step, model, x, sigmas, extra_args, callback)


S_NOISE = Knob("s_noise", 1.0, "Factor on the added noise. 1 = exact.", min=0.0, max=2.0, step=0.001, advanced=True)
SOLVERS = {
    "scm": Solver(
        sample_scm, "turbo", "SCM (TrigFlow)", lambda knobs: 0, 1, True,
        "Lu and Song 2024, arXiv:2410.11081; SANA-Sprint, Chen et al. 2025, arXiv:2503.09641",
        "continuous-time consistency models (sCM, rCM, SANA-Sprint) in 1 to 4 steps, with the schedule scm_timesteps",
        (S_NOISE,),
    ),
}
