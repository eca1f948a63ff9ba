"""What a run can be told beside its objective: the settings of each part, with their ranges."""

from ..samplers.core import Knob
from .optimisers import OPTIMISERS
from .rates import RATE_KNOBS

TARGETS = {  # preset: what of a network it trains
    "attention": "queries, keys, values and outputs of the attention in the blocks",
    "attention and mlp": "every linear layer in the blocks, but for those that make modulations of the time embedding",
    "linear": "every linear layer of the network, embeddings and modulations among them",
    "linear and convolutions": "every linear layer and convolution of the network: for UNets",
}

DATA = (
    Knob("count", 256, "Clean latents, or pairs, to make with the teacher. Not used with your own latents.", min=1, max=1000000, step=1),
    Knob("teacher_steps", 20, "Steps the teacher makes each in.", min=1, max=1000, step=1),
    Knob("teacher_scale", 4.0, "The teacher's classifier-free guidance while making them. 1 = none.", min=1.0, max=30.0, step=0.1),
    Knob("immiscible", 1, "Give each latent the nearest of so many noises. 1 = any noise; 4 to 8 help with real data. Not for pairs.",
         min=1, max=64, step=1, advanced=True),
    Knob("perturbation", 0.0, "Further noise that the student sees and is not told of, as a share of the noise. 0 = none; 0.1 as "
         "published. For captioned data only.", min=0.0, max=1.0, step=0.01, advanced=True),
)  # fmt: skip

LORA = (
    Knob("rank", 32, "Of the LoRA: more can learn more, and takes more memory.", min=1, max=512, step=1),
    Knob("alpha", 0.0, "The LoRA is multiplied by alpha / rank. 0 = the rank, which is 1.", min=0.0, max=4096.0, step=1.0, advanced=True),
    Knob("targets", "attention and mlp", "Layers of the blocks that the LoRA changes, or all linear ones of the network, or the "
         "convolutions too, for UNets.", options=tuple(TARGETS), advanced=True),
    Knob("dtype", "float32", "Of the LoRA while it is trained.", options=("float32", "bfloat16"), advanced=True),
)  # fmt: skip

OPTIMISER = (
    Knob("name", "adamw", "What turns gradients into steps. adamw_8bit, prodigy and schedule_free need a package of that kind.",
         options=tuple(OPTIMISERS)),
    Knob("lr", 0.0, "Learning rate. 0 = what is usual for the optimiser.", min=0.0, max=10.0, step=1e-6),
    Knob("weight_decay", 0.0, "Pull of every weight towards 0. 0 = none.", min=0.0, max=1.0, step=0.001, advanced=True),
    *RATE_KNOBS,
    Knob("clip", 1.0, "Longest gradient, as a norm over the whole LoRA. 0 = no limit.", min=0.0, max=1000.0, step=0.1, advanced=True),
    Knob("ema", 0.99, "What is kept of the moving average at each step; the average is the result. 0 = none, the last step is.",
         min=0.0, max=0.99999, step=0.0001, advanced=True),
)  # fmt: skip

RUN = (
    Knob("steps", 1000, "Optimiser steps.", min=1, max=10000000, step=1),
    Knob("minutes", 0.0, "Time to train for: after a few steps, only as many are planned as fit. 0 = all of them.",
         min=0.0, max=100000.0, step=0.5),
    Knob("batch", 4, "Items an optimiser step learns from.", min=1, max=4096, step=1),
    Knob("micro_batch", 0, "Items at once; the gradient of a batch is added up from them. 0 = the whole batch, and less where memory "
         "runs out.", min=0, max=4096, step=1, advanced=True),
    Knob("seed", 0, "Of everything that is drawn.", min=0, max=2**53, step=1),
    Knob("save_every", 200, "Steps between saved states.", min=1, max=1000000, step=1, advanced=True),
)  # fmt: skip

PROFILE = (
    Knob("steps", 0, "Steps the student is to be sampled in. 0 = as many as the objective teaches.", min=0, max=1000, step=1),
    Knob("cfg", 1.0, "Guidance the student is to be sampled with. 1 = none, as it has learnt it.", min=0.0, max=30.0, step=0.1, advanced=True),
)  # fmt: skip

SECTIONS = {"data": DATA, "lora": LORA, "optimiser": OPTIMISER, "run": RUN, "profile": PROFILE}
FREE = {"run": ("steps", "minutes", "micro_batch", "save_every")}  # may change when a run is continued
