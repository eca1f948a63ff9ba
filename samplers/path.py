"""How signal and noise mix at each sigma, and what the network predicts about it.

Every path is x = alpha x0 + sigma eps. As in ComfyUI, eps, v and EDM models run in VE coordinates, alpha = 1 and sigma
in [0, inf), and so does Cosmos, a flow network inside; flow (rectified flow, core's CONST) has alpha = 1 - sigma and
sigma in [0, 1].
"""

from dataclasses import dataclass, field

import torch

from .core import append_dims

PREDICTIONS = ("eps", "v", "edm", "cosmos", "flow")
BETA_MIN, BETA_MAX = 0.1, 20.0  # the VP-SDE of Song et al. 2021, arXiv:2011.13456, appendix C


@dataclass(frozen=True)
class Path:
    """sigma may be () or (B,). ``output`` and ``denoised`` follow core's EPS, V_PREDICTION, EDM,
    COSMOS_RFLOW and CONST.

    sigma_data scales v and edm. sigma_first is the largest sigma of a flow with a finite lam. log_sigmas is the
    model's own ascending table of noise levels, which gives ``time`` its meaning; without one, the VP-SDE does.
    """

    prediction: str
    sigma_data: float = 1.0
    sigma_first: float = 0.9999
    log_sigmas: torch.Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {self.prediction!r}: it must be one of {', '.join(PREDICTIONS)}.")
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data is {self.sigma_data}: it must be above 0.")
        if not 0 < self.sigma_first < 1:
            raise ValueError(f"sigma_first is {self.sigma_first}: it must lie between 0 and 1, as near 1 as usable.")

    @property
    def is_flow(self):
        return self.prediction == "flow"

    def alpha(self, sigma):
        return 1 - sigma if self.is_flow else torch.ones_like(sigma)

    def lam(self, sigma):
        """log(alpha / sigma): half the log signal-to-noise ratio. -inf at sigma 1 of a flow, +inf at 0."""
        return -sigma.logit() if self.is_flow else -sigma.log()

    def sigma(self, lam):
        return torch.sigmoid(-lam) if self.is_flow else torch.exp(-lam)

    def to_ve(self, x, sigma):
        """(x0 + sigma_ve eps, sigma_ve). Infinite at sigma 1 of a flow: see ``offset_first``."""
        alpha = self.alpha(sigma)
        return x / append_dims(alpha, x), sigma / alpha

    def from_ve(self, x_ve, sigma_ve):
        scale = 1 + sigma_ve if self.is_flow else torch.ones_like(sigma_ve)
        return x_ve / append_dims(scale, x_ve), sigma_ve / scale

    def to_vp(self, x, sigma):
        """(x_vp, alpha_vp, sigma_vp) with alpha_vp^2 + sigma_vp^2 = 1; both are kept so that neither end loses digits."""
        alpha = self.alpha(sigma)
        norm = torch.hypot(alpha, sigma)
        return x / append_dims(norm, x), alpha / norm, sigma / norm

    def from_vp(self, x_vp, alpha_vp, sigma_vp):
        scale = alpha_vp + sigma_vp if self.is_flow else alpha_vp
        return x_vp / append_dims(scale, x_vp), sigma_vp / scale

    def denoised(self, output, x, sigma):
        """The clean latent that the network's output stands for."""
        skip, out = self._preconditioning(append_dims(sigma, x))
        return skip * x + out * output

    def output(self, denoised, x, sigma):
        """The network output that stands for denoised. Undefined at sigma 0, where x is already clean."""
        skip, out = self._preconditioning(append_dims(sigma, x))
        return (denoised - skip * x) / out

    def _preconditioning(self, sigma):
        """c_skip and c_out of Karras et al. 2022, arXiv:2206.00364, table 1. v is EDM with the sign turned."""
        if self.prediction in ("eps", "flow"):
            return torch.ones_like(sigma), -sigma
        if self.prediction == "cosmos":  # velocity on x / (1 + sigma), its flow image
            return 1 / (1 + sigma), -sigma / (1 + sigma)
        norm = torch.hypot(sigma, torch.full_like(sigma, self.sigma_data))
        sign = 1 if self.prediction == "edm" else -1
        return (self.sigma_data / norm) ** 2, sign * sigma * self.sigma_data / norm

    def offset_first(self, sigmas):
        """sigmas with a flow's first value of 1 replaced by sigma_first, so that lam and the VE image are finite.

        As core does, but never down to the second value: there, halfway to it.
        """
        if not self.is_flow:
            return sigmas
        first, second = sigmas[:1], sigmas[1:2]
        usable = torch.maximum(torch.full_like(first, self.sigma_first), (1 + second) / 2)
        return torch.cat([torch.where(first >= 1, usable, first), sigmas[1:]])

    def time(self, sigma):
        """Model time: 0 at sigma 0, 1 at the noisiest level the model was trained on.

        Flow: sigma itself, for Cosmos that of its flow image. With log_sigmas: (k + 1) / len at entry k, as training steps
        are numbered from 1, linear in log sigma between entries and beyond the last, linear in sigma below the first. Else
        the VP-SDE's closed form.
        """
        if self.is_flow:
            return sigma
        if self.prediction == "cosmos":
            return sigma / (1 + sigma)
        if self.log_sigmas is None:
            lift = torch.log1p(sigma**2)
            return 2 * lift / (BETA_MIN + torch.sqrt(BETA_MIN**2 + 2 * (BETA_MAX - BETA_MIN) * lift))
        table = self.log_sigmas.cpu().to(sigma)
        log_sigma = torch.maximum(sigma.log(), table[0])
        upper = torch.searchsorted(table, log_sigma).clamp(1, len(table) - 1)
        below, above = table[upper - 1], table[upper]
        entry = upper - 1 + (log_sigma - below) / (above - below)
        return (entry + 1) / len(table) * (sigma / table[0].exp()).clamp(max=1)
