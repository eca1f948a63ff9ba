"""Token pruning on a MODEL: attention and feed-forward parts of its blocks run for some tokens and stand in for the rest.

Tokens are left out inside each part and restored behind it. So whatever lies between (residuals, positions, text, other packs'
patches, the ResBlocks of a UNet) has all of them, and no network's forward needs to know. Attention is reached through ComfyUI's
``optimized_attention_override``, feed-forward parts through their modules; both for one call at a time, from a wrapper of
APPLY_MODEL.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample
from comfy.patcher_extension import WrappersMP

from ..samplers.core import complete
from ..samplers.pruning import KNOBS, choose, distinctness, importance, is_early, outermost
from .architectures import blocks_of, import_path, plain
from .host import recorders
from .host_blocks import forwards
from .host_sites import untraced

PRUNING = "distillery_token_pruning"
OVERRIDE = "optimized_attention_override"
SIDES = {"input_blocks": "down", "middle_block": "middle", "output_blocks": "up"}


@dataclass(frozen=True)
class Tokens:
    """Where the image is in blocks of one Group.

    stream: the one that holds its tokens. feed_forward: from the block to a module that treats each token of the stream alone.
    joint: the stream begins with text. In attention over text and image, the image comes last in all of these networks.
    """

    stream: str
    feed_forward: str
    joint: bool = False


FLUX = {"double_blocks.*": Tokens("img", "img_mlp"), "single_blocks.*": Tokens("x", "linear2", joint=True)}
NETWORKS = {  # network and its subclasses: path of a Group: its Tokens
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel": {
        "input_blocks.*.*.transformer_blocks.*": Tokens("x", "ff"),
        "middle_block.*.transformer_blocks.*": Tokens("x", "ff"),
        "output_blocks.*.*.transformer_blocks.*": Tokens("x", "ff"),
    },
    "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT": {"joint_blocks.*": Tokens("x", "x_block.mlp")},
    "comfy.ldm.flux.model.Flux": FLUX,
    "comfy.ldm.chroma.model.Chroma": FLUX,
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": FLUX,
    "comfy.ldm.aura.mmdit.MMDiT": {"double_layers.*": Tokens("x", "mlpX"), "single_layers.*": Tokens("cx", "mlp", joint=True)},
    "comfy.ldm.wan.model.WanModel": {"blocks.*": Tokens("x", "ffn")},
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": {"transformer_blocks.*": Tokens("hidden_states", "img_mlp")},
    "comfy.ldm.lightricks.av_model.LTXAVModel": None,  # its stream is a pair, video and audio
    "comfy.ldm.lightricks.model.LTXVModel": {"transformer_blocks.*": Tokens("x", "ff")},
    "comfy.ldm.lumina.model.NextDiT": {"layers.*": Tokens("x", "feed_forward", joint=True)},
    "comfy.ldm.cosmos.predict2.MiniTrainDIT": {"blocks.*": Tokens("x_B_T_H_W_D", "mlp")},
}


def with_pruning(model, settings):
    """A clone whose network leaves out tokens. settings: of KNOBS. With share 0 nothing is hooked.

    ValueError for a setting out of range, a network that this pack does not know how to prune, and a model that is pruned already.
    """
    settings = complete(KNOBS, settings)
    if settings["share"] == 0:
        return model.clone()
    network = plain(model.model.diffusion_model)
    if tokens_of(type(network)) is None:
        known = ", ".join(sorted({path.rpartition(".")[2] for path, tokens in NETWORKS.items() if tokens}))
        raise ValueError(
            f"model is a {import_path(type(network))}, of which this node does not know which tokens are the image: use a Cache, which "
            f"fits every network, or a model whose network is one of {known}."
        )
    if any(PRUNING in by_key for by_key in model.wrappers.values()):
        raise ValueError("model has its tokens pruned already: keep one Token Pruning node, and raise its share.")
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, PRUNING, partial(apply_model, settings))
    return model


def tokens_of(kind):
    """{path of a Group: Tokens} of a class of networks. None if unknown."""
    return next((NETWORKS[path] for path in map(import_path, kind.__mro__) if path in NETWORKS), None)


def apply_model(settings, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
    def call():
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    if transformer_options.get("patches_replace", {}).get("attn1"):
        tell(transformer_options, 0, 0, "another node has replaced self-attention here")
        return call()
    pruning = Pruning(plain(executor.class_obj.diffusion_model), settings, x.shape, transformer_options)
    with pruning.at_work():
        output = call()
    if pruning.seen:  # else a cache answered for the network
        tell(transformer_options, pruning.seen, pruning.pruned, "first steps spare the outermost blocks" if pruning.early else "")
    return output


def tell(options, seen, pruned, why):
    """Every report of this run, how many updates of tokens by blocks were left out of all, in one item."""
    reason = ", ".join(part for part in (f"{pruned} of {seen} token updates left out" if seen else "", why) if part)
    for recorder in recorders(options):
        for condition in options["cond_or_uncond"]:
            values = {"share of tokens pruned": pruned / seen if seen else 0.0}
            recorder.note(condition, decision="prune" if pruned else "whole", reason=reason, values=values)


class Pruning:
    """One call of a network, some of its tokens left out. seen, pruned: tokens of one item, counted anew in each block."""

    def __init__(self, network, settings, shape, options):
        self.settings, self.options, self.shape = settings, options, shape
        self.patch, self.multiple = getattr(network, "patch_size", 1), getattr(network, "pad_tokens_multiple", None) or 1
        tokens, stages = tokens_of(type(network)), stages_of(network)
        self.blocks = [(block, tokens[block.group.path], stage) for block, stage in zip(blocks_of(network), stages, strict=True)]
        self.early = is_early(float(options["sigmas"][0]), options["sample_sigmas"].tolist(), settings["early"])
        self.whole = outermost(stages) if self.early else set()
        self.seen = self.pruned = self.used = 0
        self.choice = self.stage = None
        self.features = None  # (B, N, C) the image's tokens as they enter the block at work. None where all are to stay
        self.image = None  # N, how many of the tokens are the image's

    @contextmanager
    def at_work(self):
        run, feed, replacements = untraced(self.run), untraced(self.feed), {}
        for place, (block, tokens, _) in enumerate(self.blocks):
            replacements[block.module] = partial(run, place)
            replacements[block.module.get_submodule(tokens.feed_forward)] = feed
        override = untraced(partial(self.attend, self.options.get(OVERRIDE)))
        with forwards(replacements), entry(self.options, OVERRIDE, override):
            yield

    def run(self, place, forward, *args, **kwargs):
        """A block: what its parts will need to know."""
        block, where, stage = self.blocks[place]
        names = [stream.name for stream in block.group.streams]
        x = block.group.inputs(args, kwargs)[names.index(where.stream)].flatten(1, -2)
        if not where.joint:
            self.image = x.shape[1]
        elif self.image is None:  # no blocks with a stream of the image alone came before
            tokens = math.prod(-(-side // self.patch) for side in self.shape[2:])
            self.image = -(-tokens // self.multiple) * self.multiple
        fits = self.choice is not None and self.choice.twin.shape == (len(x), self.image)
        if not fits or stage != self.stage or self.used == self.settings["renew"]:
            self.choice, self.stage, self.used = None, stage, 0
        self.seen += self.image
        if place in self.whole:
            return forward(*args, **kwargs)
        self.features = x[:, -self.image :]
        if self.choice is None and self.settings["ranking"] == "distinct":
            self.choice = choose(distinctness(self.features), self.features, self.settings["share"])
        try:
            return forward(*args, **kwargs)
        finally:
            self.features = None
            if self.choice is not None:
                self.used += 1
                self.pruned += self.image - self.choice.kept.shape[1]

    def attend(self, before, func, q, k, v, heads, mask=None, *args, **kwargs):
        """An attention: fewer queries, and keys if wanted. Those to text, with a mask, or of another pack's making stay as they are."""
        call = func if before is None else partial(before, func)
        dim = 2 if kwargs.get("skip_reshape") else 1
        text = -1 if self.features is None else q.shape[dim] - self.image
        if text < 0 or k.shape[dim] != q.shape[dim] or len(q) != len(self.features) or mask is not None:
            return call(q, k, v, heads, mask, *args, **kwargs)
        if self.choice is None:
            self.choice = self.by_attention(q, k, heads, dim, text, kwargs.get("scale"))
        choice = self.choice.behind(text)
        if self.settings["keys"]:
            k, v = choice.prune(k, dim), choice.prune(v, dim)
            mask = choice.counts().to(q.dtype).log()[:, None, None].expand(-1, -1, choice.kept.shape[1], -1)
        output = call(choice.prune(q, dim), k, v, heads, mask, *args, **kwargs)
        return choice.restore(output, 2 if kwargs.get("skip_output_reshape") else 1)

    def by_attention(self, q, k, heads, dim, text, scale):
        if dim == 1:
            width = q.shape[-1] // heads
            q, k = (tensor.unflatten(-1, (-1, width)).transpose(1, 2) for tensor in (q, k))
        score = importance(q, k, self.settings["iterations"], scale)[:, text:]
        return choose(score, self.features, self.settings["share"])

    def feed(self, forward, x):
        """A feed-forward part: token by token, so that what it makes of those that are kept is exact."""
        tokens = x.flatten(1, -2)
        if self.features is None or self.choice is None or len(tokens) != len(self.features):
            return forward(x)
        choice = self.choice.behind(tokens.shape[1] - self.image)
        output = choice.restore(forward(choice.prune(tokens)))
        return output.reshape(*x.shape[:-1], output.shape[-1])


def stages_of(network):
    """(side, stage) of each block: blocks between which a UNet changes the resolution differ; of other networks, each kind."""
    blocks = {block.module: block for block in blocks_of(network)}
    found, changes = {}, 0
    for module in network.modules():
        if isinstance(module, (Downsample, Upsample)):
            changes += 1
        elif module in blocks:
            path = blocks[module].group.path
            found[module] = SIDES.get(path.partition(".")[0], ""), (path, changes)
    return [found[module] for module in blocks]


@contextmanager
def entry(options, key, value):
    """While it lasts, options[key] is value."""
    missing = object()
    before = options.get(key, missing)
    options[key] = value
    try:
        yield
    finally:
        if before is missing:
            options.pop(key, None)
        else:
            options[key] = before
