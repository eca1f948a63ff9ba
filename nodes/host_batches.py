"""Several noise levels in one call of a ComfyUI model: what a batch of B items means to core, kept true for w x B of them."""

from itertools import chain

import comfy.conds
import comfy.samplers
import torch

from ..samplers.core import append_dims


class Spread:
    """Answers x (w * B, C, ..., H, W), item fastest, at sigma (w * B,), mixed; in place of the model that core gives a sampler.

    Core repeats conditions, masks and hints of B items in this very order; the latent and the noise of a masked run are repeated
    here. Core decides by the first noise level of a batch which prompts and ControlNets are active, and how far a mask that
    changes with the noise level has opened: levels for which that differs are kept out of each other's batches.
    """

    def __init__(self, model, batch):
        self.model, self.batch = model, batch
        self.conds = list(chain.from_iterable(model.inner_model.conds.values()))
        check_hooks(self.conds)
        self.starts, self.ends = borders(self.conds)
        self.sizes = {1: model}

    def __call__(self, x, sigma, denoise_mask=None, model_options=None, **extra_args):
        has_moving_mask = denoise_mask is not None and "denoise_mask_function" in (model_options or {})

        def evaluate(x, sigma):
            w = len(x) // self.batch
            mask = None if denoise_mask is None else repeated(denoise_mask, w)
            return self.sized(w)(x, sigma, denoise_mask=mask, model_options=model_options or {}, **extra_args)

        if not (self.starts or self.ends or has_moving_mask):
            return evaluate(x, sigma)
        levels = sigma.tolist()  # a wait for the device, where ranges are used
        groups = levels if has_moving_mask else [self.active(level) for level in levels]
        return torch.cat([
            self.row(evaluate, x[rows], sigma[rows], groups[rows]) for rows in self.runs(groups)
        ])  # fmt: skip

    def runs(self, groups):
        """Slices of x: as many whole states as one group holds, or one state whose items are of several groups."""
        b = self.batch
        states = [set(groups[i : i + b]) for i in range(0, len(groups), b)]
        start = 0
        for i in range(1, len(states) + 1):
            if i == len(states) or states[i] != states[start] or len(states[start]) > 1:
                yield slice(start * b, i * b)
                start = i

    def row(self, evaluate, x, sigma, groups):
        """One batch of a single group. Items of several are told apart by a call for each group, with its level in front."""
        answer = None
        for group in dict.fromkeys(groups):
            chosen = torch.tensor([other == group for other in groups], device=x.device)
            level = sigma[groups.index(group)]
            found = evaluate(x, torch.where(chosen, sigma, level))
            answer = found if answer is None else torch.where(append_dims(chosen, x), found, answer)
        return answer

    def active(self, level):
        return tuple(level > start for start in self.starts), tuple(level < end for end in self.ends)

    def sized(self, w):
        """The model that core makes of the guider for this run, with the run's latent and noise w times over."""
        if w not in self.sizes:
            check_divides(self.conds, self.batch)
            larger = comfy.samplers.KSamplerX0Inpaint(self.model.inner_model, self.model.sigmas)
            larger.latent_image = repeated(self.model.latent_image, w)
            larger.noise = repeated(self.model.noise, w)
            self.sizes[w] = larger
        return self.sizes[w]


def repeated(tensor, w):
    return tensor.repeat(w, *[1] * (tensor.ndim - 1))


def controls(conds):
    """Every ControlNet in use, those behind others too."""
    for cond in conds:
        control = cond.get("control")
        while control is not None:
            yield control
            control = control.previous_controlnet


def borders(conds):
    """The noise levels from which on down prompts and ControlNets act, and those below which they do not."""
    ranges = [(cond.get("timestep_start"), cond.get("timestep_end")) for cond in conds]
    ranges += [control.timestep_range or (None, None) for control in controls(conds)]
    return [sorted({float(level) for level in side if level is not None}) for side in zip(*ranges)]


def check_hooks(conds):
    """ValueError where a LoRA or the like changes on the way: core's schedule of those goes one way only."""
    hooks = (hook for cond in conds if cond.get("hooks") is not None for hook in cond["hooks"].hooks)
    if any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks):
        raise ValueError(
            "a prompt has hook keyframes, a schedule of LoRA strengths, which cannot serve several noise levels at once: remove "
            "them or use another sampler."
        )


def check_divides(conds, batch):
    """ValueError where a condition holds another number of items than core would repeat in step with the batch."""
    tensors = []
    for cond in conds:
        for value in cond.get("model_conds", {}).values():
            if isinstance(value, comfy.conds.CONDConstant):
                continue
            tensors += value.cond if isinstance(value, comfy.conds.CONDList) else [value.cond]
        tensors += [cond["mask"]] if "mask" in cond else []
    tensors += [control.cond_hint_original for control in controls(conds)]
    counts = {len(tensor) for tensor in tensors if torch.is_tensor(tensor) and tensor.ndim}
    wrong = sorted(count for count in counts if batch % count)
    if wrong:
        raise ValueError(
            f"a prompt, mask or control picture holds {wrong[0]} items and the latent {batch}: to sample several steps at once, "
            "give one for all or one per latent, or use another sampler."
        )
