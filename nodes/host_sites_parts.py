"""Where a cache can stand in for the attention or the feed-forward parts of every block."""

from functools import partial

import torch

from .architectures import blocks_of, import_path
from .host_blocks import forwards
from .host_sites import Evaluation, Site, untraced

PARTS = {  # kind: what blocks call theirs, where it is a module that they run
    "self-attention": {
        "attn", "attn1", "attention", "self_attn", "self_attention", "img_self_attn", "img_instruct_attn", "audio_attn1",
    },
    "cross-attention": {
        "attn2", "cross_attn", "cross_attention", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn",
    },
    "mlp": {
        "ff", "ffn", "mlp", "moe", "feed_forward", "img_mlp", "txt_mlp", "mlpC", "mlpX", "mlp_x", "mlp_y", "audio_ff",
        "img_feed_forward", "instruct_feed_forward",
    },
}  # fmt: skip
PAIR, ALONE, WITH_NONE = (True, True), (True,), (True, False)  # a tuple: of which True is a tensor and False None
RETURNS = {  # class of a part, and its name in the block: what it returns, where that is no tensor
    ("comfy.ldm.qwen_image.model.Attention", "attn"): PAIR,
    ("comfy.ldm.lens.model.LensJointAttention", "attn"): PAIR,
    ("comfy.ldm.aura.mmdit.DoubleAttention", "attn"): PAIR,
    ("comfy.ldm.joyimage.model.JoyImageAttention", "attn"): PAIR,
    ("comfy.ldm.pixeldit.model.MMDiTJointAttention", "attn"): PAIR,
    ("comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmetricAttention", "attn"): PAIR,
    ("comfy.ldm.seedvr.model.NaSwinAttention", "attn"): PAIR,
    ("comfy.ldm.seedvr.model.MMModule", "mlp"): PAIR,
    ("comfy.ldm.hydit.attn_layers.Attention", "attn1"): ALONE,
    ("comfy.ldm.hydit.attn_layers.CrossAttention", "attn2"): ALONE,
    ("comfy.ldm.ace.attention.Attention", "attn"): WITH_NONE,
}  # fmt: skip
IN_PIECES = {"comfy.ldm.pixeldit.modules.PiTBlock": "mlp"}  # run several times, each time for a piece of the batch


class Parts(Site):
    """The attention or the feed-forward parts of all blocks of the main stream: kind of PARTS. Kept: what each returns.

    What they add is old, what they add it to and the gates are new: the unit level of A-SDM (feature inheritance), and what PAB
    (Zhao et al. 2024, arXiv:2408.12588) broadcasts. They are kept in the order in which they run.
    """

    def __init__(self, kind="self-attention"):
        self.kind = kind

    @property
    def title(self):
        return self.kind

    def fits(self, network):
        return bool(self.parts(network))

    def parts(self, network):
        """Module: what it returns, None for a tensor."""
        found = {}
        for block in blocks_of(network) or ():
            in_pieces = IN_PIECES.get(import_path(type(block.module)))
            for name, module in block.module.named_children():
                if name in PARTS[self.kind] and name != in_pieces:
                    found[module] = RETURNS.get((import_path(type(module)), name))
        return found

    def evaluate(self, call, network, decide, given=None):
        parts, values = self.parts(network), decide(given)
        if values is not None:
            give = partial(untraced(_give), iter(values))
            with forwards({module: partial(give, returns) for module, returns in parts.items()}):
                return Evaluation(call(), None, True, 0, len(parts))
        kept = []
        keep = partial(untraced(_keep), kept)
        with forwards({module: partial(keep, returns) for module, returns in parts.items()}):
            output = call()
        known = kept and all(tensor is not None for tensor in kept)
        return Evaluation(output, kept if known else None, False, len(parts), 0)


# The networks may write over what their parts return (MiniMax): copies, both to keep and to give.


def _keep(kept, returns, forward, *args, **kwargs):
    output = forward(*args, **kwargs)
    made = output if isinstance(output, (tuple, list)) else (output,)
    if tuple(map(torch.is_tensor, made)) == (returns or ALONE):
        kept.extend(tensor.clone() for tensor in made if tensor is not None)
    else:
        kept.append(None)  # another pack's, of which it is not known what it has to return
    return output


def _give(values, returns, forward, *args, **kwargs):
    if returns is None:
        return next(values).clone()
    return tuple(next(values).clone() if is_tensor else None for is_tensor in returns)
