"""Caches by name: which policy, forecast and site each is made of, and what the strength does to it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """scaled is the policy's knob that a strength from 0 to 1 sets, so that nothing is skipped at 0: as middle times (2 strength)^power."""

    title: str
    source: str
    good_for: str
    policy: str
    scaled: str
    middle: float  # its value at strength 0.5
    forecast: str = "reuse"
    forecast_knobs: dict = field(default_factory=dict)
    site: str = "prediction"
    site_knobs: dict = field(default_factory=dict)
    power: int = 1
    fixed: dict = field(default_factory=dict)  # other knobs of the policy

    def policy_knobs(self, strength):
        if self.scaled == "interval":  # a whole number of steps, 1 where nothing is skipped
            return self.fixed | {"interval": round(1 + 2 * (self.middle - 1) * strength)}
        return self.fixed | {self.scaled: self.middle * (2 * strength) ** self.power}


PRESETS = {
    "automatic": Preset(
        "Automatic", "this pack: a budget for the error of the final latent, forecasts of the whole prediction",
        "every network; measures its own error as it goes", "budget", "budget", 0.05, "newton", {"order": 1, "reach": 0.3},
        power=2, fixed={"first_steps": 3, "most_in_a_row": 8},
    ),
    "first_block": Preset(
        "First Block Cache", "ParaAttention and WaveSpeed, after TeaCache, arXiv:2411.19108", "transformers",
        "first_block", "block_threshold", 0.12, site="blocks", site_knobs={"first": 1, "last": 0},
    ),
    "accumulated": Preset(
        "TeaCache-style", "Liu et al. 2024, arXiv:2411.19108, on the first block's residual, without a table of coefficients",
        "transformers", "accumulated", "sum_threshold", 0.15, site="blocks", site_knobs={"first": 1, "last": 0},
    ),
    "taylor": Preset(
        "TaylorSeer-style", "Liu et al. 2025, arXiv:2503.06923", "transformers in many steps",
        "interval", "interval", 3, "newton", {"order": 1}, "blocks", {"first": 1, "last": 0},
    ),
    "rate": Preset(
        "EasyCache-style", "Zhou et al. 2025, arXiv:2507.02860", "every network", "rate", "rate_threshold", 0.1,
    ),
    "stability": Preset(
        "SADA-style", "after Jiang et al. 2025, arXiv:2507.17135, with steps as they are and a relative error",
        "every network, with solvers that add no noise", "stability", "stability_threshold", 0.3, "adams", {"order": 1},
        fixed={"first_steps": 3},
    ),
    "magnitude": Preset(
        "MagCache-style", "Ma et al. 2025, arXiv:2506.09045, with magnitudes measured in the run instead of a table",
        "every network", "magnitude", "magnitude_threshold", 0.03, fixed={"most_in_a_row": 3},
    ),
    "deep_branch": Preset(
        "DeepCache", "Ma et al. 2023, arXiv:2312.00858", "UNets (Stable Diffusion 1, 2, XL)",
        "interval", "interval", 3, site="deep_branch", site_knobs={"depth": 1},
    ),
    "encoder": Preset(
        "Faster Diffusion", "Li et al. 2023, arXiv:2312.09608", "UNets",
        "interval", "interval", 3, site="encoder", site_knobs={"parallel": True},
    ),
    "attention": Preset(
        "Attention reuse", "after PAB, Zhao et al. 2024, arXiv:2408.12588", "networks whose blocks have an attention part of their own",
        "interval", "interval", 3, site="self_attention",
    ),
}  # fmt: skip
