"""Which of diffusers' schedulers can drive a MODEL, what their numbers mean, and why the others cannot."""

from dataclasses import dataclass

STATES = {  # what a scheduler's state is, of a clean latent x0 and unit noise eps
    "table": "sqrt(a) x0 + sqrt(1 - a) eps, with a from the config's betas at a whole timestep",
    "ve": "x0 + sigma eps, with sigma from the config's betas",
    "vp": "(x0 + sigma eps) / sqrt(1 + sigma^2), with sigma from the config's betas; a flow with use_flow_sigmas",
    "edm": "x0 + sigma eps, with sigma from sigma_min to sigma_max; the output is preconditioned as in EDM",
    "consistency": "as edm, preconditioned so that the network changes nothing at sigma_min",
    "flow": "(1 - sigma) x0 + sigma eps",
    "trigflow": "sigma_data (cos t x0 + sin t eps)",
    "crash": "alpha x0 + beta eps, with alpha and beta from the scheduler itself",
}


@dataclass(frozen=True)
class Usable:
    """``state`` is a key of STATES. ``calls``: model calls a step: "one"; "pair", two but one in the last; or "pndm".

    ``sigmas``: how set_timesteps takes a list of noise levels: "without 0", "with 0" at its end, or None, not at all.
    """

    state: str
    calls: str = "one"
    sigmas: str | None = None

    def __post_init__(self):
        assert self.state in STATES and self.calls in ("one", "pair", "pndm") and self.sigmas in (None, "with 0", "without 0")


USABLE = {
    "DDIMScheduler": Usable("table"),
    "DDIMParallelScheduler": Usable("table"),
    "DDPMScheduler": Usable("table"),
    "DDPMParallelScheduler": Usable("table"),
    "PNDMScheduler": Usable("table", calls="pndm"),
    "LCMScheduler": Usable("table"),
    "TCDScheduler": Usable("table"),
    "CogVideoXDDIMScheduler": Usable("table"),
    "CogVideoXDPMScheduler": Usable("table"),
    "UnCLIPScheduler": Usable("table"),
    "EulerDiscreteScheduler": Usable("ve", sigmas="with 0"),
    "EulerAncestralDiscreteScheduler": Usable("ve"),
    "HeunDiscreteScheduler": Usable("ve", calls="pair"),
    "KDPM2DiscreteScheduler": Usable("ve", calls="pair"),
    "KDPM2AncestralDiscreteScheduler": Usable("ve", calls="pair"),
    "LMSDiscreteScheduler": Usable("ve"),
    "DPMSolverSDEScheduler": Usable("ve", calls="pair"),
    "DPMSolverMultistepScheduler": Usable("vp"),
    "DPMSolverSinglestepScheduler": Usable("vp"),
    "DEISMultistepScheduler": Usable("vp"),
    "UniPCMultistepScheduler": Usable("vp", sigmas="without 0"),
    "SASolverScheduler": Usable("vp"),
    "EDMEulerScheduler": Usable("edm"),
    "EDMDPMSolverMultistepScheduler": Usable("edm"),
    "CosineDPMSolverMultistepScheduler": Usable("edm"),
    "CMStochasticIterativeScheduler": Usable("consistency"),
    "FlowMatchEulerDiscreteScheduler": Usable("flow", sigmas="without 0"),
    "FlowMatchHeunDiscreteScheduler": Usable("flow", calls="pair"),
    "FlowMatchLCMScheduler": Usable("flow", sigmas="without 0"),
    "LTXEulerAncestralRFScheduler": Usable("flow", sigmas="with 0"),
    "MiniMaxH3Scheduler": Usable("flow", sigmas="with 0"),
    "SCMScheduler": Usable("trigflow"),
    "IPNDMScheduler": Usable("crash"),
}

TOKENS = "it works on discrete tokens, not on latents"
STAGES = "it changes the size of the latent between stages of its own pipeline"
BACKWARDS = "it runs from the picture to the noise, and SIGMAS fall: use Invert"
UNDRIVEN = "it has no step() that a pipeline of latents calls"
REFUSED = {
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "VQDiffusionScheduler": TOKENS,
    "RFD4ProteinaScheduler": "it folds proteins",
    "HeliosScheduler": STAGES,
    "HeliosDMDScheduler": STAGES,
    "PiflowScheduler": "its networks answer with a whole grid of predictions, and a MODEL with one",
    "FlowMapEulerDiscreteScheduler": "its networks are told where a step ends as well as where it begins, and a MODEL is not",
    "RePaintScheduler": "it needs the picture and the mask at every step: use a latent with a noise mask and another scheduler",
    "ConsistencyDecoderScheduler": "it decodes latents to pixels inside a VAE",
    "DDPMWuerstchenScheduler": "it keeps Stable Cascade's own time, which ComfyUI's samplers know: use ddpm",
    "DDIMInverseScheduler": BACKWARDS,
    "DPMSolverMultistepInverseScheduler": BACKWARDS,
    "ScoreSdeVeScheduler": UNDRIVEN,
    "ScoreSdeVpScheduler": UNDRIVEN,
    "KarrasVeScheduler": UNDRIVEN,
}


def check_known(name):
    """ValueError unless USABLE has this class."""
    if str(name) in REFUSED:
        raise ValueError(f"scheduler {name} cannot drive a MODEL: {REFUSED[name]}.")
    if str(name) not in USABLE:
        raise ValueError(f"scheduler {name!r} is none that this node knows: there is {', '.join(USABLE)}.")
