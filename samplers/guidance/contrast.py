"""What guidance leads away from, made of more than the negative prompt: further prompts, or a weaker model.

Each rule gives the one unconditional prediction with which plain CFG does what the paper says, so that skipping and shaping rules go
on from there: ``rule(uncond, others, cond, scale, *, <knobs>) -> uncond``, all denoised (B, C, ..., H, W). scale is CFG's, not 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..core import HasNeutral, Knob, batch_dims


@dataclass(frozen=True)
class Contrast(HasNeutral):
    """wants(knobs, step) is (whether the negative prompt's own prediction is used at this step, whether the others' are).

    other is what reports call the other prediction; kind, "positive" or "negative", as what ComfyUI prepares its prompt. A rule that
    ``adds`` changes what there is by an amount that does not depend on others of its kind.
    """

    rule: Callable
    title: str
    source: str
    good_for: str
    knobs: tuple[Knob, ...]
    neutral: dict
    other: str
    kind: str = "negative"
    adds: bool = False
    wants: Callable = lambda knobs, step: (True, True)


def perpendicular(uncond, others, cond, scale, *, neg_scale, share):
    """Perp-Neg: of the negative prompt only what the positive one does not say. others: the empty prompt's prediction.

    Armandpour et al. 2023, arXiv:2304.04968, section 4. Item by item; core's node takes the product over the whole batch. share
    of it; the rest is plain CFG against the negative prompt.
    """
    (empty,) = others
    positive, negative = cond - empty, uncond - empty
    dims = batch_dims(cond)
    square = (positive * positive).sum(dims, keepdim=True)
    along = (negative * positive).sum(dims, keepdim=True) / square.where(square > 0, square.new_ones(()))
    perpendicular = empty + neg_scale * scale / (scale - 1) * (negative - along * positive)
    return uncond + share * (perpendicular - uncond)


def several(uncond, others, cond, scale, *, weight):
    """A further prompt with a scale of its own: denoised = uncond + scale (cond - uncond) + weight (other - uncond).

    Avrahami et al. 2022, SpaText, arXiv:2211.14305, equation 4, for one more prompt; a chain of these is for several.
    """
    (other,) = others
    return uncond - weight / (scale - 1) * (other - uncond)


def alternating(uncond, others, cond, scale, *, share):
    """The other negative prompt at a share of the steps. Chen et al. 2022, Re-Imagen, arXiv:2209.14491, section 3.3."""
    return others[0]


def takes_turn(share, step):
    """Whether the other prompt has this step: as evenly spread as the share allows."""
    return int((step + 1) * share + 1e-9) > int(step * share + 1e-9)


def weaker(uncond, others, cond, scale, *, share):
    """Away from what a weaker model makes of the same prompt. Karras et al. 2024, arXiv:2406.02507, equation 5.

    share is that of the weaker model; the rest is the negative prompt's, as in plain CFG. others: the weaker model's prediction.
    """
    (weak,) = others
    return weak if uncond is None else uncond + share * (weak - uncond)


SHARE = Knob(
    "share", 1.0, "How much of what guidance leads away from is made this way, or at how many of the steps; the rest is the negative "
    "prompt's prediction, as in plain CFG. Neutral: 0.", min=0.0, max=1.0, step=0.01,
)  # fmt: skip
WEAKER = Contrast(
    weaker, "Autoguidance", "Karras et al. 2024, arXiv:2406.02507", "better shapes without less variety", (SHARE,),
    neutral={"share": 0.0}, other="weak", wants=lambda knobs, step: (knobs["share"] < 1, True),
)  # fmt: skip
CONTRASTS = {
    "perpendicular": Contrast(
        perpendicular, "Perpendicular negative", "Armandpour et al. 2023, arXiv:2304.04968",
        "a negative prompt that cannot take away what the prompt asks for; the further prompt is an empty one",
        (
            Knob("neg_scale", 1.0, "Strength of the negative prompt. 0 is CFG against the empty prompt.", min=0.0, max=100.0, step=0.01),
            SHARE,
        ),
        neutral={"share": 0.0}, other="empty",
    ),
    "several": Contrast(
        several, "Another prompt", "Avrahami et al. 2022, arXiv:2211.14305", "prompts that each have a strength of their own",
        (
            Knob("weight", 1.0, "CFG scale of the further prompt, beside the sampler's for the positive one. Neutral: 0.",
                 min=-100.0, max=100.0, step=0.1),
        ),
        neutral={"weight": 0.0}, other="other", kind="positive", adds=True,
    ),
    "alternating": Contrast(
        alternating, "Interleaved guidance", "Chen et al. 2022, arXiv:2209.14491",
        "two things to keep away from at the cost of one; the further prompt is the second",
        (SHARE,),
        neutral={"share": 0.0}, other="other negative",
        wants=lambda knobs, step: (False, True) if takes_turn(knobs["share"], step) else (True, False),
    ),
}  # fmt: skip
