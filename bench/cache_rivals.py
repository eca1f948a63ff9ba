"""Caches of other packs, written from their descriptions, as patches of a MODEL: at their best, and with as little work at a skipped
step as they allow.

Each remembers, for one run, what it needs of each set of conditions that the network is given in one call. All but core's own know
only a plain network: no ControlNet, and no patch of another pack.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from . import hosted

DEGREE = 4  # of the polynomials in TeaCache's tables


@dataclass
class Memory:
    """Of one set of conditions in one run."""

    signal: torch.Tensor | None = None  # what the rule compares
    kept: torch.Tensor | None = None  # what stands in at a skipped step
    entered: torch.Tensor | None = None  # the image tokens where skipping begins, in the present call
    skips: bool = False  # in the present call
    in_a_row: int = 0
    calls: int = 0
    totals: dict = field(default_factory=dict)  # of each condition, since the last evaluation


def remembering(model):
    """(a clone, memory_of): memory_of(transformer_options) is the Memory of the conditions that are evaluated, new in each run."""
    from comfy.patcher_extension import WrappersMP

    model, memories = model.clone(), {}

    def outer_sample(executor, *args, **kwargs):
        try:
            return executor(*args, **kwargs)
        finally:
            memories.clear()

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "rival", outer_sample)
    return model, lambda options: memories.setdefault(tuple(options["uuids"]), Memory())


def relative_change(new, old):
    """Mean |new - old| over mean |old|, a float."""
    return float((new - old).abs().mean() / old.abs().mean())


# core


def core_cache(model, node, threshold):
    """core's EasyCache or LazyCache as its node comes. EasyCache writes over its input on float32 flow models: it gets a copy."""
    from comfy.patcher_extension import WrappersMP

    def diffusion_model(executor, x, *args, **kwargs):
        return executor(x.clone(), *args, **kwargs)

    if node == "EasyCache":
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "copies", diffusion_model)
    kind = hosted.node_classes()[node]
    return kind.EXECUTE_NORMALIZED(model=model, reuse_threshold=threshold, start_percent=0.15, end_percent=0.95, verbose=False).args[0]


# First Block Cache, chengzeyi's Comfy-WaveSpeed


def first_block_rule(model, threshold, most_in_a_row=None, start=0.0, end=1.0):
    """skips(memory, signal, options): while the first block's residual has changed less than threshold since the last evaluation.

    One decision for the whole call. most_in_a_row None is no limit; start and end are shares of sampling as in core's nodes.
    """
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    high, low = float(to_sigma(start)), float(to_sigma(end))

    def skips(memory, signal, options):
        hit = memory.signal is not None and relative_change(signal, memory.signal) < threshold
        hit = hit and low <= float(options["sigmas"][0]) <= high and (most_in_a_row is None or memory.in_a_row < most_in_a_row)
        memory.in_a_row = memory.in_a_row + 1 if hit else 0
        if not hit:
            memory.signal = signal
        return hit

    return skips


def first_block_cache(model, threshold, **limits):
    skips = first_block_rule(model, threshold, **limits)
    if hasattr(model.model.diffusion_model, "double_blocks"):
        return flux_first_block_cache(model, skips)
    return unet_first_block_cache(model, skips)


def flux_first_block_cache(model, skips):
    """The first double block always runs. What all others added to the image tokens is added again; theirs to the text as well, which
    nothing reads after the last block.
    """
    model, memory_of = remembering(model)

    def first(args, extra):
        memory, before = memory_of(args["transformer_options"]), args["img"].clone()  # blocks write over what they get
        out = extra["original_block"](args)
        memory.skips = skips(memory, out["img"] - before, args["transformer_options"])
        if memory.skips:
            return {"img": out["img"] + memory.kept, "txt": out["txt"]}
        memory.entered = out["img"].clone()
        return out

    return with_flux_blocks(model, memory_of, first)


def unet_first_block_cache(model, skips):
    """WaveSpeed's form for UNets: the first two input blocks always run, and the second one's residual decides. What all that follows
    them added, until before the output layer, is added again.
    """
    from comfy.patcher_extension import WrappersMP

    model, memory_of = remembering(model)

    def diffusion_model(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        memory, blocks = memory_of(transformer_options), Blocks(executor.class_obj, x, timesteps, context, transformer_options)
        inputs, outputs = blocks.network.input_blocks, blocks.network.output_blocks
        before = blocks.run(inputs[0], x)
        after = blocks.run(inputs[1], before)
        if skips(memory, after - before, transformer_options):
            return blocks.network.out(after + memory.kept)
        skipped, h = [before, after], after
        for block in inputs[2:]:
            h = blocks.run(block, h)
            skipped.append(h)
        h = blocks.run_outputs(outputs, blocks.run(blocks.network.middle_block, h), skipped)
        memory.kept = h - after
        return blocks.network.out(h)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "rival", diffusion_model)
    return model


# TeaCache, Liu et al. 2024, arXiv:2411.19108


def tea_cache(model, threshold, coefficients=(1.0, 0.0)):
    """Skips all blocks while the changes of the first one's time-modulated input from step to step, through the polynomial, highest
    power first, sum up to less than threshold for each condition. First and last step always run. The published polynomials belong to
    models of full size; the default is the identity.
    """
    model, memory_of = remembering(model)
    block = model.model.diffusion_model.double_blocks[0]

    def first(args, extra):
        options = args["transformer_options"]
        memory, signal = memory_of(options), modulated(block, args)
        conditions = len(options["cond_or_uncond"])
        if memory.signal is not None:
            for n, (new, old) in enumerate(zip(signal.chunk(conditions), memory.signal.chunk(conditions))):
                memory.totals[n] = memory.totals.get(n, 0.0) + polynomial(coefficients, relative_change(new, old))
        last = options["sigmas"][0] <= options["sample_sigmas"][-2]
        memory.skips = memory.kept is not None and not last and max(memory.totals.values()) < threshold
        memory.signal = signal
        if memory.skips:
            return {"img": args["img"] + memory.kept, "txt": args["txt"]}
        memory.totals, memory.entered = {}, args["img"].clone()
        return extra["original_block"](args)

    return with_flux_blocks(model, memory_of, first)


def modulated(block, args):
    """What the first double block's image stream gets: normed, scaled and shifted for the time."""
    modulation, _ = block.img_mod(args["vec"])
    return torch.addcmul(modulation.shift, block.img_norm1(args["img"]), 1 + modulation.scale)


def polynomial(coefficients, x):
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def fitted_coefficients(task, sampler, sigmas):
    """TeaCache's calibration: the polynomial from the change of the modulated input at a step to that of the network's output.

    From one uncached run of the task, each condition of each picture a line of points.
    """
    import numpy as np
    from comfy.patcher_extension import WrappersMP

    model, inputs, outputs = task.model.clone(), [], []
    block = model.model.diffusion_model.double_blocks[0]

    def first(args, extra):
        inputs.append(modulated(block, args))
        return extra["original_block"](args)

    def diffusion_model(executor, *args, **kwargs):
        outputs.append(executor(*args, **kwargs))
        return outputs[-1]

    model.set_model_patch_replace(first, "dit", "double_block", 0)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "rival", diffusion_model)
    task.sample(sampler, sigmas, model)
    x, y = (
        [relative_change(b[row], a[row]) for a, b in pairwise(kept) for row in range(len(a))] for kept in (inputs, outputs)
    )
    return tuple(np.polyfit(x, y, DEGREE).tolist())


# DeepCache, Ma et al. 2023, arXiv:2312.00858


def deep_cache(model, interval, depth=1):
    """Every interval-th step runs whole; in between only the outermost ``depth`` input and output blocks: 1 is its branch 0."""
    from comfy.patcher_extension import WrappersMP

    model, memory_of = remembering(model)

    def diffusion_model(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        memory, network = memory_of(transformer_options), executor.class_obj
        inputs, outputs = network.input_blocks[:depth], network.output_blocks[-depth:]
        skips = memory.calls % interval > 0
        memory.calls += 1
        if not skips:

            def keep(h, skipped, options):
                if options["block"] == ("output", len(network.output_blocks) - depth):
                    memory.kept = h
                return h, skipped

            options = {**transformer_options, "patches": {"output_block_patch": [keep]}}
            return executor(x, timesteps, context, y, control, options, **kwargs)
        blocks, h, skipped = Blocks(network, x, timesteps, context, transformer_options), x, []
        for block in inputs:
            h = blocks.run(block, h)
            skipped.append(h)
        return network.out(blocks.run_outputs(outputs, memory.kept, skipped))

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "rival", diffusion_model)
    return model


# blocks


def with_flux_blocks(model, memory_of, first):
    """The model, whose first double block is ``first``; all later ones pass on what they get in a call whose memory skips, else what
    they added to the image tokens since ``memory.entered`` is kept.
    """
    network = model.model.diffusion_model
    places = [("double_block", i) for i in range(len(network.double_blocks))]
    places += [("single_block", i) for i in range(len(network.single_blocks))]

    def later(args, extra):
        return args if memory_of(args["transformer_options"]).skips else extra["original_block"](args)

    def last(args, extra):
        memory = memory_of(args["transformer_options"])
        if memory.skips:
            return args
        out = extra["original_block"](args)
        memory.kept = out["img"][:, -memory.entered.shape[1] :] - memory.entered  # the text comes first
        return out

    for place, patch in zip(places, [first, *[later] * (len(places) - 2), last]):
        model.set_model_patch_replace(patch, "dit", *place)
    return model


class Blocks:
    """Runs blocks of a UNet one by one, as its forward does."""

    def __init__(self, network, x, timesteps, context, transformer_options):
        from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

        self.network, self.context = network, context
        self.options = {**transformer_options, "transformer_index": 0, "original_shape": list(x.shape)}
        self.emb = network.time_embed(timestep_embedding(timesteps, network.model_channels, repeat_only=False).to(x.dtype))

    def run(self, block, h, shape=None):
        from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed

        return forward_timestep_embed(block, h, self.emb, self.context, self.options, shape)

    def run_outputs(self, blocks, h, skipped):
        """skipped: what the input blocks made that these output blocks are given, taken from its end."""
        for block in blocks:
            h = torch.cat([h, skipped.pop()], 1)
            h = self.run(block, h, skipped[-1].shape if skipped else None)
        return h
