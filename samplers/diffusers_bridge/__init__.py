"""Any scheduler of diffusers as a SAMPLER with its SIGMAS, equal to the loop of diffusers' pipelines.

A pipeline keeps the latent in its scheduler's coordinates, hands the network what scale_model_input makes of it and gives
step() what the network says. Here the MODEL is called in ComfyUI's coordinates at the same noise level, and its denoised
latent is told to step() as the prediction that the scheduler expects. diffusers is an optional extra, imported when used.
"""

from .catalogue import REFUSED, USABLE
from .prepare import Facts, prepare

__all__ = ["REFUSED", "USABLE", "Facts", "prepare"]
