"""What is evaluated at one prediction beside the positive prompt, and what fills in where nothing is."""

import torch

from ..samplers.guidance.skipping.skip import similarities
from .host_prompts import rows_of


class Branch:
    """A prompt beside the positive one at one prediction: for which items of the batch it is evaluated, and what the rest get."""

    def __init__(self, number, skippers, moment, cond, model_options, divisible):
        self.number, self.skippers = number, skippers
        self.wanted = [skipper.needed(moment) for skipper in skippers]
        needed = [all(wants[i] for wants in self.wanted) for i in range(len(moment.x))]
        if is_one_video(cond, moment, model_options):
            needed = [any(needed)] * len(needed)
        self.items = [i for i, wanted in enumerate(needed) if wanted]
        self.skipped = [i for i, wanted in enumerate(needed) if not wanted]
        partly = self.items and self.skipped and divisible
        self.rows = rows_of(cond, self.items, len(needed), model_options) if partly else None
        self.whole = bool(self.items) and self.rows is None
        self.note = {}

    def finish(self, moment, cond, uncond):
        """The predictions of this branch, (B, ...): the evaluated ones, else what the first rule that skips has for them."""
        similar = similarities(moment, cond, uncond, self.items) if self.items and self.skippers else []
        for skipper in self.skippers if similar else ():
            skipper.observe(moment, cond, uncond, self.items, similar)
        word, reason, waiting = "guide" if self.skippers else "", "", set(self.skipped)
        for skipper, wanted in zip(self.skippers, self.wanted):
            fills = [i for i in sorted(waiting) if not wanted[i]]
            if fills:
                chosen = torch.tensor([i in fills for i in range(len(wanted))], device=cond.device)
                uncond = torch.where(chosen.view(-1, *[1] * (cond.ndim - 1)), skipper.estimate(moment, cond), uncond)
                word, reason = skipper.forecast.word, skipper.policy.reason
                waiting -= set(fills)
        share = 0 if self.whole else len(self.skipped) / len(moment.x)
        values = {"similarity": sum(similar) / len(similar)} if similar else {}
        self.note = {"skipped": share, "decision": word, "reason": reason, "values": values}
        return uncond


class Contrasts:
    """What else is evaluated at one step beside the positive and the negative prompt, each under a number of its own from 2 on."""

    def __init__(self, links, step):
        self.asked = [(link, other, *link.rule.wants(link.settings, step)) for link, other in links]
        self.names = ("cond", "uncond", *(other.name for _, other in links))

    def joining(self, conds):
        """The prompts of one call: core's own two, as far as they are needed, and the further ones."""
        positive, negative = conds
        needed = self.asked[0][2]
        return [positive, negative if needed else None, *(other.prompt if wanted else None for _, other, _, wanted in self.asked)]

    def uncond(self, out, scale, call, records):
        """What to guide away from; out: the predictions of that call; further ones are by calls of their own, made with ``call``.

        Several by one rule all start from what was there before the first of them, so that their changes add up.
        """
        cond, uncond = out[:2]
        rule = before = None
        for number, (link, other, keeps, wanted) in enumerate(self.asked, 2):
            if link.rule is not rule:
                rule, before = link.rule, uncond
            others = []
            if wanted:
                others = [other.predict(number, records, *call) if other.prompt is None else out[number]]
            made = rule.rule(before if keeps else None, others, cond, scale, **link.settings)
            uncond = uncond + (made - before) if keeps and uncond is not before else made
        return uncond


def is_one_video(cond, moment, model_options):
    """Whether the items of the batch are frames of one video, which must be treated alike."""
    window = model_options["transformer_options"].get("context_window")
    frames = any("num_video_frames" in entry["model_conds"] for entry in cond)
    return frames or (window is not None and window.dim == 0 and len(moment.x) > 1)
