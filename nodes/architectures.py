"""Where the networks of ComfyUI 0.30 keep their blocks, and which tensors run through them: data, read from their sources.

A block is one unit of a network's main stream that gives back what it was given, changed: without it the network still runs.
Refiners of the text or of the noise, control branches and decoders of pixels are not part of the main stream.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stream:
    """What a block is given and gives back: by this name, or at this place where its caller does not name it."""

    name: str
    place: int


@dataclass(frozen=True)
class Group:
    """Blocks of one kind.

    path: from the network to the blocks; * stands for each part of a list, and parts without the next name are passed over.
    streams: in the order in which a block returns them. One alone is returned bare, several as a tuple.
    """

    path: str
    streams: tuple[Stream, ...]

    def inputs(self, args, kwargs):
        """The streams in a call of a block's forward, in the order in which it will return them.

        The blocks of Flux and its relatives, of LTXV and of MiniMax write over them: keep a copy of what you need later.
        """
        return tuple(kwargs[stream.name] if stream.name in kwargs else args[stream.place] for stream in self.streams)

    def output(self, streams):
        """These streams as a block of this group returns them."""
        return streams if len(self.streams) > 1 else streams[0]


@dataclass(frozen=True)
class Architecture:
    network: str  # import path of its class; subclasses are meant too
    groups: tuple[Group, ...]  # in the order in which they run


@dataclass(frozen=True)
class Block:
    name: str  # path in the network, such as double_blocks.3
    module: torch.nn.Module
    group: Group


def _group(path, **places):
    return Group(path, tuple(Stream(name, place) for name, place in places.items()))


FLUX_BLOCKS = (_group("double_blocks.*", img=0, txt=1), _group("single_blocks.*", x=0))

ARCHITECTURES = (
    # SD1, SD2, SDXL, SVD: the blocks inside its spatial transformers. Those over time (SVD's time_stack) always stay.
    Architecture("comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel", (
        _group("input_blocks.*.*.transformer_blocks.*", x=0),
        _group("middle_block.*.transformer_blocks.*", x=0),
        _group("output_blocks.*.*.transformer_blocks.*", x=0),
    )),
    # SD3. Its last block returns None for the context, which nobody reads after it.
    Architecture("comfy.ldm.modules.diffusionmodules.mmdit.MMDiT", (_group("joint_blocks.*", context=0, x=1),)),
    Architecture("comfy.ldm.flux.model.Flux", FLUX_BLOCKS),  # and Flux 2, LongCat Image
    Architecture("comfy.ldm.chroma.model.Chroma", FLUX_BLOCKS),  # and Chroma Radiance
    Architecture("comfy.ldm.hunyuan_video.model.HunyuanVideo", FLUX_BLOCKS),  # and HunyuanImage 2.1
    Architecture("comfy.ldm.hunyuan3d.model.Hunyuan3Dv2", FLUX_BLOCKS),
    Architecture("comfy.ldm.aura.mmdit.MMDiT", (_group("double_layers.*", c=0, x=1), _group("single_layers.*", cx=0))),
    Architecture("comfy.ldm.wan.model.WanModel", (_group("blocks.*", x=0),)),  # and its variants
    Architecture("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel", (
        _group("transformer_blocks.*", encoder_hidden_states=1, hidden_states=0),
    )),
    Architecture("comfy.ldm.mage_flow.model.MageFlowTransformer2DModel", (
        _group("transformer_blocks.*", encoder_hidden_states=1, hidden_states=0),
    )),
    Architecture("comfy.ldm.lens.model.LensTransformer2DModel", (
        _group("transformer_blocks.*", encoder_hidden_states=1, hidden_states=0),
    )),
    Architecture("comfy.ldm.joyimage.model.JoyImageTransformer3DModel", (
        _group("double_blocks.*", hidden_states=0, encoder_hidden_states=1),
    )),
    # LTXV, and LTXAV, where x is the pair (video, audio).
    Architecture("comfy.ldm.lightricks.model.LTXBaseModel", (_group("transformer_blocks.*", x=0),)),
    Architecture("comfy.ldm.lumina.model.NextDiT", (_group("layers.*", x=0),)),  # Lumina 2, Z-Image
    Architecture("comfy.ldm.cosmos.model.GeneralDIT", (_group("blocks.*", x=0),)),
    Architecture("comfy.ldm.cosmos.predict2.MiniTrainDIT", (_group("blocks.*", x_B_T_H_W_D=0),)),  # and Anima
    Architecture("comfy.ldm.pixart.pixartms.PixArtMS", (_group("blocks.*", x=0),)),
    # Text comes with the block's own layer of Llama appended; the caller cuts what is returned back to its length.
    Architecture("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel", (
        _group("double_stream_blocks.*", image_tokens=0, text_tokens=2),
        _group("single_stream_blocks.*", image_tokens=0),
    )),
    Architecture("comfy.ldm.kandinsky5.model.Kandinsky5", (_group("visual_transformer_blocks.*", visual_embed=0),)),
    Architecture("comfy.ldm.krea2.model.SingleStreamDiT", (_group("blocks.*", x=0),)),
    Architecture("comfy.ldm.ernie.model.ErnieImageModel", (_group("layers.*", x=0),)),
    Architecture("comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel", (_group("layers.*", hidden_states=0),)),
    Architecture("comfy.ldm.boogu.model.BooguTransformer2DModel", (
        _group("double_stream_layers.*", img_hidden_states=0, instruct_hidden_states=1),
        _group("single_stream_layers.*", hidden_states=0),
    )),
    Architecture("comfy.ldm.ideogram4.model.Ideogram4Transformer", (_group("layers.*", x=0),)),
    Architecture("comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel", (
        _group("blocks.*", hidden_states=0, encoder_hidden_states=1),
    )),
    Architecture("comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint", (_group("blocks.*", x=0, y=2),)),  # Mochi
    Architecture("comfy.ldm.minimax.model.MiniMaxH3Model", (_group("blocks.*", x=0),)),
    Architecture("comfy.ldm.ace.model.ACEStepTransformer2DModel", (_group("transformer_blocks.*", hidden_states=0),)),
    Architecture("comfy.ldm.ace.ace_step15.AceStepConditionGenerationModel", (_group("decoder.layers.*", hidden_states=0),)),
    Architecture("comfy.ldm.audio.dit.AudioDiffusionTransformer", (_group("transformer.layers.*", x=0),)),  # Stable Audio
    # The second half of these two also gets a skip from the first; a block left out takes no notice of its own.
    Architecture("comfy.ldm.hydit.models.HunYuanDiT", (_group("blocks.*", x=0),)),
    Architecture("comfy.ldm.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain", (_group("blocks.*", hidden_states=0),)),
    Architecture("comfy.ldm.pixeldit.model.PixDiT_T2I", (_group("patch_blocks.*", x=0, y=1), _group("pixel_blocks.*", x=0))),
    Architecture("comfy.ldm.triposplat.model.LatentSeqMMFlowModel", (_group("blocks.*", x=0),)),
    # One block at least has to stay: the last layer reads an embedding that the blocks leave.
    Architecture("comfy.ldm.seedvr.model.NaDiT", (_group("blocks.*", vid=0, txt=1, vid_shape=2, txt_shape=3),)),
)  # fmt: skip

NOT_DESCRIBED = {  # network: why
    "comfy.ldm.hidream_o1.model.HiDreamO1Transformer": "keeps the keys and values of every block from step to step",
    "comfy.ldm.cascade.stage_b.StageB": "runs the same blocks several times a step",
    "comfy.ldm.cascade.stage_c.StageC": "may run the same blocks several times a step",
    "comfy.ldm.rt_detr.rtdetr_v4.RTv4": "finds objects, and does not sample",
    "comfy.ldm.depth_anything_3.model.DepthAnything3Net": "estimates depth, and does not sample",
    "comfy.ldm.sam3.detector.SAM3Model": "segments, and does not sample",
}
BY_NETWORK = {architecture.network: architecture for architecture in ARCHITECTURES}


def import_path(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def architecture_of(kind):
    """The Architecture of a class of networks, its own or that of the nearest class it inherits from. None if unknown."""
    return next((BY_NETWORK[path] for path in map(import_path, kind.__mro__) if path in BY_NETWORK), None)


def plain(network):
    """The network itself, of one that torch.compile has wrapped."""
    return vars(network).get("_modules", {}).get("_orig_mod", network)  # where getattr finds it, at a tenth of the cost


def blocks_of(network):
    """The Blocks of a network (``model.model.diffusion_model``) in the order in which they run. None for an unknown one."""
    network = plain(network)
    architecture = architecture_of(type(network))
    if architecture is None:
        return None
    return [
        Block(name, module, group) for group in architecture.groups for name, module in _modules(network, group.path.split("."))
    ]


def _modules(module, path, name=""):
    """(name, module) of all that the path leads to."""
    if not path:
        yield name[1:], module
        return
    for child, part in module.named_children():
        if path[0] in ("*", child):
            yield from _modules(part, path[1:], f"{name}.{child}")
