"""The node that encodes the prompts a run of training learns from."""

import itertools
import os
import re

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from .host_prompt_bank import PromptBank
from .picture_sets import check_images

MOST = 4096  # prompts
CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
PromptsType = io.Custom("DISTILLERY_PROMPTS")


class DistillPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        clip = io.Clip.Input("clip", tooltip="The model's text encoder.")
        negative = io.String.Input(
            "negative", default="", multiline=True,
            tooltip="What the teacher is guided away from, for all prompts: it is learnt, and not needed afterwards. Neutral: empty.",
        )  # fmt: skip
        return io.Schema(
            node_id="Distillery_DistillPrompts",
            display_name="Distill Prompts",
            category="distillery/distillation",
            description="Encodes, once, the prompts that Distill learns from: a list, a file, CONDITIONING, or pictures with captions.",
            search_aliases=["prompt list", "captions", "dataset", "prompt bank", "training prompts"],
            inputs=[
                io.DynamicCombo.Input(
                    "source",
                    options=[
                        io.DynamicCombo.Option("list", [
                            clip,
                            io.String.Input(
                                "prompts", multiline=True,
                                tooltip="One prompt a line; empty lines do not count. {red|blue} stands for each of its choices: "
                                "such a line becomes a prompt for every combination.",
                            ),
                            negative,
                        ]),
                        io.DynamicCombo.Option("file", [
                            clip,
                            io.String.Input(
                                "file", default="prompts.txt",
                                tooltip="A text file in ComfyUI's input folder, UTF-8, one prompt a line, as in a list.",
                            ),
                            negative,
                        ]),
                        io.DynamicCombo.Option("conditioning", [
                            io.Conditioning.Input(
                                "positive", tooltip="From your own text nodes; Conditioning (Combine) joins several into as many prompts."
                            ),
                            io.Conditioning.Input("negative", tooltip="One for all: what the teacher is guided away from."),
                        ]),
                        io.DynamicCombo.Option("pictures", [
                            clip,
                            io.Vae.Input("vae", tooltip="The model's autoencoder."),
                            io.Image.Input("images", tooltip="Your pictures, all of the size to train at."),
                            io.String.Input("prompts", multiline=True, tooltip="A caption a line, in the order of the pictures."),
                            negative,
                        ]),
                    ],
                    tooltip="Where prompts come from. list and file: text, encoded here. conditioning: encoded by nodes of yours. "
                    "pictures: captioned ones, for recipes that learn from real data (gft); others then need no latents of the teacher.",
                ),
            ],
            outputs=[
                PromptsType.Output("prompts", display_name="prompts", tooltip="For Distill or Export Run."),
                io.String.Output("text", display_name="text", tooltip="The prompts as they were encoded, one a line."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, source):
        """Changes when the file does."""
        if source["source"] != "file":
            return ""
        try:
            return os.stat(prompt_file(str(source.get("file")))).st_mtime_ns
        except (OSError, ValueError):
            return ""

    @classmethod
    def execute(cls, source) -> io.NodeOutput:
        kind = source["source"]
        if kind == "conditioning":
            bank = PromptBank.of([source["positive"]], [source["negative"]])
            return io.NodeOutput(bank, f"{len(bank.positive)} prompts as CONDITIONING")
        if kind == "pictures":
            check_images("images", source["images"])
            prompts = [line.strip() for line in source["prompts"].splitlines() if line.strip()]
            if len(prompts) != len(source["images"]):
                raise ValueError(
                    f"prompts has {len(prompts)} lines, and there are {len(source['images'])} pictures: give one caption for each."
                )
        else:
            prompts = expanded(source["prompts"] if kind == "list" else file_text(source["file"]), kind)
        encoded = [encode(source["clip"], text) for text in progress([*prompts, source["negative"]])]
        latents = source["vae"].encode(source["images"][..., :3]) if kind == "pictures" else None
        bank = PromptBank.of(encoded[:-1], encoded[-1:], (*prompts, source["negative"]), latents)
        return io.NodeOutput(bank, "\n".join(prompts))


def expanded(text, where="prompts"):
    """The prompts of a text, one a line, each {a|b} in it standing for both. ValueError for none, and for too many."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    prompts = [prompt for line in lines for prompt in itertools.islice(_choices(line), MOST + 1)]
    prompts = list(dict.fromkeys(prompts))
    if not prompts:
        raise ValueError(f"{where} holds no prompt: give at least one line.")
    if len(prompts) > MOST:
        raise ValueError(f"{where} makes more than {MOST} prompts: leave out some of the choices in braces, or lines.")
    return prompts


def _choices(line):
    found = CHOICE.search(line)
    if found is None:
        yield line
        return
    for choice in found[1].split("|"):
        yield from _choices(line[: found.start()] + choice.strip() + line[found.end() :])


def prompt_file(name):
    """The path of a file in ComfyUI's input folder. ValueError for one elsewhere, or none."""
    root = folder_paths.get_input_directory()
    path = os.path.join(root, name.strip())
    if not folder_paths.is_within_directory(root, path):
        raise ValueError(f"file is {name!r}, which leads out of ComfyUI's input folder: give a name inside it.")
    if not os.path.isfile(path):
        raise ValueError(f"file is {name!r}, and there is none of that name in ComfyUI's input folder, {root}: check the name.")
    return path


def file_text(name):
    path = prompt_file(name)
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"file is {name!r}, which is no text in UTF-8 ({error}): save it as UTF-8.") from error


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def progress(items):
    """The items, with ComfyUI's bar moving; stops where the user interrupts."""
    bar = comfy.utils.ProgressBar(len(items))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)


NODES = [DistillPrompts]
