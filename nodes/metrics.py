"""The node that measures how near a set of generated pictures is to a set of reference pictures."""

import hashlib
import json
import os

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..measure.distribution import every_metric
from ..measure.inception import FidInception
from ..measure.judge import load_judge
from .display import show
from .picture_sets import check_sets, files_in, pictures

BATCH = 16  # pictures at a time through the network
BEST = {
    "fid": "0", "fid_infinity": "0", "kid": "0", "precision": "1", "recall": "1", "density": "1", "coverage": "1",
    "inception_score": "high", "is_infinity": "high",
}  # fmt: skip
folder_paths.add_model_folder_path("inception", os.path.join(folder_paths.models_dir, "inception"))


def source_input(name):
    """Where a set comes from. The sockets for images are beside it: the browser fails on an option that is a socket alone."""
    folder = io.String.Input("folder", default="", tooltip="Its name there, as a/b. Only the pictures right in it are read.")
    return io.DynamicCombo.Input(
        f"{name}_source",
        options=[
            io.DynamicCombo.Option("images", []),
            io.DynamicCombo.Option("input folder", [folder]),
            io.DynamicCombo.Option("output folder", [folder]),
        ],
        tooltip=f"images: what is connected to {name}. Or all pictures of a folder in ComfyUI's input or output folder.",
    )


class DistributionMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        weights = [name for name in folder_paths.get_filename_list("inception") if name.endswith(".safetensors")]
        return io.Schema(
            node_id="Distillery_DistributionMetrics",
            display_name="Distribution Metrics",
            category="distillery/reports",
            description="FID, KID, precision, recall and more: how near a set of pictures is to another, as a set.",
            search_aliases=["fid", "kid", "inception score", "precision", "recall", "coverage", "density", "quality"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                source_input("reference"),
                source_input("generated"),
                io.DynamicCombo.Input(
                    "features",
                    options=[
                        io.DynamicCombo.Option("judge", []),
                        io.DynamicCombo.Option(
                            "clip_vision",
                            [io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision: CLIP ViT or DINOv2.")],
                        ),
                        io.DynamicCombo.Option(
                            "inception",
                            [
                                io.Combo.Input(
                                    "weights", options=weights,
                                    tooltip="pytorch-fid's weights as .safetensors in models/inception: see this node's help.",
                                ),
                            ],
                        ),
                    ],
                    tooltip="The network that looks at the pictures. judge: comes with the pack, knows the bundled models' "
                    "coloured shapes only. clip_vision: any pictures. inception: any, comparable with published figures.",
                ),
                io.Int.Input(
                    "neighbours", default=5, min=1, max=100, advanced=True,
                    tooltip="How far precision, recall, density and coverage reach: the paper's k, 5.",
                ),
                io.Int.Input(
                    "smallest", default=5000, min=10, max=1000000, advanced=True,
                    tooltip="FID and IS at infinity are extrapolated from this many pictures upwards, and need twice as many.",
                ),
                io.Image.Input(
                    "reference", optional=True,
                    tooltip="What pictures should be like: real ones, or those of a slower setting.",
                ),
                io.Image.Input(
                    "generated", optional=True,
                    tooltip="The pictures to judge: of the same resolution, in any number.",
                ),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The metrics, one line each, with their best value."),
                io.String.Output("json", display_name="json", tooltip="The metrics, and why those left out are, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, reference_source, generated_source, **others):
        """Changes when a file in a folder does."""
        paths = [
            path
            for name, source in (("reference", reference_source), ("generated", generated_source))
            if "folder" in source
            for path in files_in(name, source[f"{name}_source"], source["folder"])
        ]
        states = [(path, os.stat(path).st_mtime_ns) for path in paths]
        return hashlib.sha256(repr(states).encode()).hexdigest()

    @classmethod
    def execute(
        cls, reference_source, generated_source, features, neighbours, smallest, reference=None, generated=None
    ) -> io.NodeOutput:
        sets = [pictures("reference", reference_source, reference), pictures("generated", generated_source, generated)]
        check_sets(*sets, neighbours)
        network = features["features"]
        read = NETWORKS[network](features)
        bar = comfy.utils.ProgressBar(sum(-(-each.count // BATCH) for each in sets))
        (real, _), (made, probabilities) = (read_all(each, read, bar) for each in sets)
        metrics, absent = {}, {}
        stop_if_asked = comfy.model_management.throw_exception_if_processing_interrupted
        for name, value, reason in every_metric(
            real, made, probabilities, k=neighbours, smallest=smallest, between=stop_if_asked
        ):
            (absent if value is None else metrics)[name] = reason if value is None else value
        result = {
            "reference": sets[0].count, "generated": sets[1].count, "resolution": list(sets[0].size),
            "features": {"network": network, "count": real.shape[1]}, "metrics": metrics, "absent": absent,
        }  # fmt: skip
        text = in_words(result)
        return io.NodeOutput(text, json.dumps(result), ui=show(cls, text, metrics=[result]))


# Networks. Each entry takes the dict of the node's input and returns images -> (features, class probabilities or None).


def judge(_):
    network = on_device(load_judge())
    return lambda images: (network.features(images), network.probabilities(images))


def clip_vision(chosen):
    network = chosen["clip_vision"]

    def read(images):
        embeddings = network.encode_image(images, crop=False)["image_embeds"]
        if embeddings.ndim != 2:
            raise ValueError(
                f"clip_vision: this model gives {embeddings.ndim - 1}-dimensional embeddings, one for each part of a picture. "
                "Load a CLIP ViT or DINOv2, which give one for the whole."
            )
        return embeddings, None

    return read


def inception(chosen):
    path = folder_paths.get_full_path_or_raise("inception", chosen["weights"])
    network = on_device(FidInception(comfy.utils.load_torch_file(path, safe_load=True)))

    def read(images):
        features = network.features(images)
        return features, network.probabilities(features)

    return read


NETWORKS = {"judge": judge, "clip_vision": clip_vision, "inception": inception}


def on_device(network):
    device = comfy.model_management.get_torch_device()
    size = sum(parameter.nbytes for parameter in network.parameters())
    comfy.model_management.free_memory(size + 2**30, device)  # the activations of a batch fit in 1 GiB
    return network.to(device)


def read_all(each, read, bar):
    """Features (N, D) of all pictures, and class probabilities (N, classes) or None, on the CPU."""
    found = []
    for start in range(0, each.count, BATCH):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append([value if value is None else value.cpu() for value in read(each.read(start, start + BATCH))])
        bar.update(1)
    features, probabilities = zip(*found)
    return torch.cat(features), None if probabilities[0] is None else torch.cat(probabilities)


def in_words(result):
    network = result["features"]
    width, height = result["resolution"]
    sizes = f"{result['generated']} generated pictures against {result['reference']} of reference, {width} x {height}"
    lines = [f"{sizes}, {network['count']} features of {network['network']}"]
    lines += [f"{name.replace('_', ' '):16} {value:10.4g}   best {BEST[name]}" for name, value in result["metrics"].items()]
    lines += [f"{name.replace('_', ' '):16} absent: {reason}" for name, reason in result["absent"].items()]
    if min(result["generated"], result["reference"]) <= network["count"]:
        lines.append("Fewer pictures than features: compare FID only with runs of as many pictures, and rather trust KID.")
    return "\n".join(lines)


NODES = [DistributionMetrics]
