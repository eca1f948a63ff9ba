"""The node that scores how well pictures fit their prompts, by a CLIP whose both towers the user has loaded."""

import copy
import json

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.clip_model import CLIPTextModel
from comfy.sd1_clip import SDClipModel
from comfy_api.latest import io

from ..measure.pictures import clip_score
from .display import show
from .picture_sets import check_images

BATCH = 16  # pictures at a time through the network
LOADERS = comfy.sd.load_clip_model_patcher, comfy.sd.load_checkpoint_clip_patcher  # their first argument: the path or paths


class PromptScore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_PromptScore",
            display_name="Prompt Score",
            category="distillery/reports",
            description="How well pictures fit their prompts, from 0 to 100: CLIPScore, by a CLIP that you have loaded.",
            search_aliases=["clip score", "clipscore", "prompt adherence", "alignment", "quality"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score, in any number."),
                io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision: the CLIP ViT that belongs to clip."),
                io.Clip.Input(
                    "clip",
                    tooltip="Straight from its loader: the text encoder of the same CLIP, with its text projection. The file of "
                    "an SD1 checkpoint has none; see this node's help.",
                ),
                io.String.Input("prompt", multiline=True, tooltip="What the pictures should show, as in CLIP Text Encode."),
                io.Combo.Input(
                    "lines", options=["one prompt", "a prompt each"], default="one prompt",
                    tooltip="one prompt: the whole text, for all pictures. a prompt each: one line for each picture, in their "
                    "order; empty lines do not count.",
                ),
                io.Combo.Input(
                    "crop", options=["center", "none"], default="center", advanced=True,
                    tooltip="center: CLIP sees the square in the middle, as published. none: the whole picture, squeezed into "
                    "a square. The same for square pictures.",
                ),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The mean score, its range, and the worst picture."),
                io.String.Output("json", display_name="json", tooltip="The score of every picture, and its prompt, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, clip_vision, clip, prompt, lines, crop) -> io.NodeOutput:
        check_images("images", images)
        prompts = prompts_of(prompt, lines, len(images))
        name, tower = text_tower(clip, embedding_width(clip_vision))
        clip.load_model()
        check_projection(clip, name, tower)
        distinct, batches = list(dict.fromkeys(prompts)), images.split(BATCH)
        bar = comfy.utils.ProgressBar(len(distinct) + len(batches))
        texts, cut = embed_texts(clip, name, tower, distinct, bar)
        pictures = embed_pictures(clip_vision, batches, crop == "center", bar)
        scores = clip_score(pictures, torch.cat([texts[each] for each in prompts])).tolist()
        result = {
            "prompt_score": {"mean": sum(scores) / len(scores), "items": scores}, "prompts": prompts, "text_encoder": name,
            "cut": cut,
        }  # fmt: skip
        text = in_words(result)
        return io.NodeOutput(text, json.dumps(result), ui=show(cls, text, prompt_score=[result]))


def prompts_of(prompt, lines, count):
    """One prompt per picture."""
    if lines == "one prompt":
        if not prompt.strip():
            raise ValueError("prompt is empty: write what the pictures should show.")
        return [prompt.strip()] * count
    prompts = [line.strip() for line in prompt.split("\n") if line.strip()]
    if len(prompts) != count:
        raise ValueError(
            f"prompt has {len(prompts)} lines, and there are {count} images: give one line for each, or choose 'one prompt' as "
            "lines."
        )
    return prompts


def embedding_width(clip_vision):
    """How wide the embeddings of a CLIP ViT are. ValueError for other vision models, which share no space with a text."""
    projection = getattr(clip_vision.model, "visual_projection", None)
    if clip_vision.model_type != "clip_vision_model" or not isinstance(projection, torch.nn.Module):
        raise ValueError(
            f"clip_vision is a {clip_vision.model_type}, and only a CLIP ViT with a projection can be compared with a text "
            "encoder of ComfyUI. Load a CLIP ViT with Load CLIP Vision, such as CLIP-ViT-L."
        )
    return projection.out_features


def text_tower(clip, width):
    """(name, module) of the CLIP text encoder that gives embeddings of this width. ValueError where there is none."""
    encoders = {name: each for name, each in clip.cond_stage_model.named_children() if isinstance(each, SDClipModel)}
    towers = {name: each for name, each in encoders.items() if isinstance(each.transformer, CLIPTextModel)}
    widths = {name: each.transformer.text_projection.out_features for name, each in towers.items()}
    for name, tower in towers.items():
        if widths[name] == width:
            return name, tower
    found = ", ".join(f"{name} with {found}" for name, found in widths.items()) or "none at all"
    raise ValueError(
        f"clip_vision gives embeddings of {width} numbers, and no text encoder of a CLIP in clip does (found: {found}). Both "
        "must be of one CLIP: ViT-L goes with clip_l, ViT-H with the clip_h of SD2, ViT-bigG with clip_g."
    )


def check_projection(clip, name, tower):
    """ValueError unless the text projection is that of the file: where a file has none, core leaves it uninitialised."""
    if clip.patcher.patches:
        raise ValueError("clip is changed by a LoRA or a merge, and is no CLIP any more. Connect it as it comes from its loader.")
    init = clip.patcher.cached_patcher_init
    if init is None or init[0] not in LOADERS:
        raise ValueError(
            "clip: its loader does not say from which file it is, so nobody can tell whether that held a text projection. Use "
            "Load CLIP, Load CLIP (Dual) or Load Checkpoint."
        )
    weight = tower.transformer.text_projection.weight.detach().cpu()
    files = [init[1][0]] if isinstance(init[1][0], str) else init[1][0]
    held = any(torch.equal(each.to(weight.dtype), weight) for file in files for each in projections_in(file, weight.shape))
    if not held or torch.equal(weight.float(), torch.eye(len(weight))):  # what older versions of core saved for none
        raise ValueError(
            f"clip: {name} comes without its text projection, as in SD1 checkpoints and files made for them: its embeddings "
            "cannot be compared with pictures. Load one with text_projection.weight by Load CLIP; this node's help names files."
        )


def projections_in(file, shape):
    """Every text projection of this shape in a file, upright and transposed: layouts differ."""
    for name, value in comfy.utils.load_torch_file(file, safe_load=True).items():
        if "text_projection" in name and value.shape == shape:
            yield value
            yield value.T


def embed_texts(clip, name, tower, prompts, bar):
    """{prompt: its projected embedding (1, D)}, whatever the encoder gives its diffusion model; and the prompts that were cut."""
    device = clip.patcher.load_device
    ours = copy.copy(tower)  # the user's weights, and options of its own
    ours.set_clip_options({"projected_pooled": True, "execution_device": device})
    embeddings, cut = {}, []
    for prompt in prompts:
        comfy.model_management.throw_exception_if_processing_interrupted()
        first, *rest = clip.tokenize(prompt)[name.removeprefix("clip_")]
        with comfy.model_management.cuda_device_context(device):
            embeddings[prompt] = ours.encode_token_weights([first])[1]
        if rest:
            cut.append(prompt)
        bar.update(1)
    return embeddings, cut


def embed_pictures(clip_vision, batches, crop, bar):
    found = []
    for images in batches:
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(clip_vision.encode_image(images, crop=crop)["image_embeds"])
        bar.update(1)
    return torch.cat(found)


def in_words(result):
    score = result["prompt_score"]
    items = score["items"]
    lines = [f"prompt score {score['mean']:.4g} of 100, by {result['text_encoder']}"]
    if len(items) > 1:
        worst = items.index(min(items))
        lines[0] += f" ({min(items):.4g} to {max(items):.4g})"
        lines.append(f"worst: picture {worst + 1}")
        if len(set(result["prompts"])) > 1:
            lines[1] += f", {result['prompts'][worst]!r}"
    if result["cut"]:
        lines.append(f"{len(result['cut'])} prompt(s) longer than a CLIP reads: only the beginning counts.")
    return "\n".join(lines)


NODES = [PromptScore]
