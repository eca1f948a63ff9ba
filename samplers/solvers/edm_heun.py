"""EDM's stochastic Heun. Karras et al. 2022, arXiv:2206.00364, algorithm 2.

Before a step, churn raises the noise by a share of its level; the step then removes it, together with some of the errors
made so far. Raised in VE coordinates and carried back, so that a flow keeps its own mix of signal and noise.
"""

from math import sqrt

import torch

from ..core import Knob, denoiser
from ..noise import from_seed
from .renoise import check_range, heun_step, raised
from .solver import Solver


def sample_edm_heun(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, path, noise_sampler=None, s_churn=5.0, s_tmin=0.05,
    s_tmax=50.0, s_noise=1.0,
):  # fmt: skip
    """Heun: order 2 without churn. As published, churn may raise the first sigma too; that of a flow, if 1, stays."""
    noise_sampler = noise_sampler or from_seed(x, extra_args)
    check_range("s_tmin", s_tmin, "s_tmax", s_tmax)
    denoise = denoiser(model, extra_args)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    hats = churned(path, sigmas.cpu().double(), s_churn, s_tmin, s_tmax)
    is_churned = (hats > sigmas[:-1].cpu()).tolist()
    sigmas, hats, ends_clean = sigmas.to(x), hats.to(x), bool(sigmas[-1] == 0)
    last = len(hats) - 1
    for i, (sigma, sigma_hat, sigma_next) in enumerate(zip(sigmas, hats, sigmas[1:])):
        if is_churned[i]:
            x = raised(path, x, sigma, sigma_hat, s_noise, noise_sampler)
        denoised = denoise(x, sigma_hat)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": denoised})
        x = denoised if i == last and ends_clean else heun_step(denoise, x, denoised, sigma_hat, sigma_next)
    return x


def churned(path, sigmas, s_churn, s_tmin, s_tmax):
    """The noise level each step starts from once churned. sigmas: CPU, float64."""
    start = sigmas[:-1]
    share = min(s_churn / len(start), sqrt(2) - 1)
    raised_to = path.sigma(path.lam(start) - torch.tensor(share, dtype=start.dtype).log1p())
    inside = (start >= s_tmin) & (start <= s_tmax) & (share > 0)
    return torch.where(inside, raised_to, start)


SOLVERS = {
    "edm_heun": Solver(
        sample_edm_heun, "stochastic", "EDM stochastic Heun", lambda knobs: 2, 2, True,
        "Karras et al. 2022, arXiv:2206.00364",
        "18 steps and more, where renewed noise corrects errors that a deterministic sampler keeps",
        (
            Knob(
                "s_churn", 5.0, "Noise renewed over the whole run: each step first raises its noise level by the share s_churn / "
                "steps, at most 0.41. 0 = none, core's heun. The paper has 30 to 80 at 256 steps and more.",
                min=0.0, max=200.0, step=0.5,
            ),
            Knob("s_tmin", 0.05, "No churn at noise levels below this. 0 = no limit.", min=0.0, max=1000.0, step=0.01),
            Knob("s_tmax", 50.0, "No churn at noise levels above this. 1000 = no limit.", min=0.0, max=1000.0, step=0.01),
            Knob(
                "s_noise", 1.0, "Factor on the added noise. 1 = exact; the paper has up to 1.007, against lost detail.",
                min=0.9, max=1.1, step=0.001, advanced=True,
            ),
        ),
        calls=lambda n, knobs: 2 * n - 1,
    ),
}
