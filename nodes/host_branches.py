"""What is evaluated at one prediction beside the positive prompt, and what fills in where nothing is."""

import torch

from ..samplers.core import append_dims
from ..samplers.guidance.skipping.skip import similarities
from .host_prompts import active, rows_of


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
        similar = {}
        for skipper in self.skippers if self.items else ():
            measure = skipper.policy.measure
            if measure not in similar:
                similar[measure] = similarities(moment, cond, uncond, self.items, measure)
            skipper.observe(moment, cond, uncond, self.items, similar[measure])
        word, reason, waiting = "guide" if self.skippers else "", "", set(self.skipped)
        for skipper, wanted in zip(self.skippers, self.wanted):
            fills = [i for i in sorted(waiting) if not wanted[i]]
            if fills:
                chosen = torch.tensor([i in fills for i in range(len(wanted))], device=cond.device)
                uncond = torch.where(append_dims(chosen, cond), skipper.estimate(moment, cond), uncond)
                word, reason = skipper.forecast.word, skipper.policy.reason
                waiting -= set(fills)
        share = 0 if self.whole else len(self.skipped) / len(moment.x)
        cosines = next(iter(similar.values()), None)
        values = {"similarity": sum(cosines) / len(cosines)} if cosines else {}
        self.note = {"skipped": share, "decision": word, "reason": reason, "values": values}
        return uncond


class Contrasts:
    """What else is evaluated at one step beside the positive and the negative prompt, each under a number of its own from 2 on.

    Rules that add to what there is come last, and all start from the same; before a rule that puts something in its place, nothing
    is evaluated.
    """

    def __init__(self, links, step, timestep):
        self.names = ("cond", "uncond", *(other.name for _, other in links))
        self.asked = []  # (number, link, other, whether it keeps what was there), in the order in which they act
        for number, (link, other) in sorted(enumerate(links, 2), key=lambda numbered: numbered[1][0].rule.adds):
            keeps, wanted = link.rule.wants(link.settings, step)
            if wanted and (other.prompt is None or active(other.prompt, timestep)):  # else it has nothing to say here
                self.asked = [*(self.asked if keeps else []), (number, link, other, keeps)]

    def joining(self, conds):
        """The prompts of one call: core's own two, as far as they are needed, and the further ones."""
        positive, negative = conds
        kept = not self.asked or self.asked[0][3]
        further = {number: other.prompt for number, _, other, _ in self.asked}
        return [positive, negative if kept else None, *(further.get(number) for number in range(2, len(self.names)))]

    def uncond(self, out, scale, call, records):
        """What to guide away from; out: the predictions of that call; further ones are by calls of their own, made with ``call``."""
        cond, uncond = out[:2]
        base = None
        for number, link, other, keeps in self.asked:
            if other.prompt is None:
                prediction = other.predict(number, records, *call)
            else:  # where a mask or an area leaves nothing of a prompt, core answers 0: there it changes nothing
                prediction = torch.where((out[number] == 0).all(1, keepdim=True), uncond if keeps else cond, out[number])
            if link.rule.adds:
                base = uncond if base is None else base
                uncond = uncond + link.rule.rule(base, [prediction], cond, scale, **link.settings) - base
            else:
                uncond = link.rule.rule(uncond if keeps else None, [prediction], cond, scale, **link.settings)
        return uncond


def is_one_video(cond, moment, model_options):
    """Whether the items of the batch are frames of one video, which must be treated alike."""
    window = model_options["transformer_options"].get("context_window")
    frames = any("num_video_frames" in entry["model_conds"] for entry in cond)
    return frames or (window is not None and window.dim == 0 and len(moment.x) > 1)
