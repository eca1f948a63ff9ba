"""Sets of pictures for the metrics: a batch, or a folder of ComfyUI's read a few at a time."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import folder_paths
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

TURNED = range(5, 9)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Pictures:
    """A set of pictures of one size, (width, height); ``read(start, stop)`` gives some of them as (n, H, W, 3)."""

    name: str
    count: int
    size: tuple[int, int]
    read: Callable


def pictures(name, source, images):
    if "folder" in source:
        if images is not None:
            raise ValueError(
                f"{name}: images are connected, and {name}_source is a folder. Choose images there, or disconnect."
            )
        return pictures_of_folder(name, source[f"{name}_source"], source["folder"])
    if images is None:
        raise ValueError(f"{name}: no images are connected. Connect a batch, or choose a folder as {name}_source.")
    check_images(name, images)
    return Pictures(name, len(images), (images.shape[2], images.shape[1]), lambda start, stop: images[start:stop, ..., :3])


def check_images(name, images):
    """ValueError unless this is an IMAGE batch of at least one picture, and finite."""
    if images.ndim != 4 or images.shape[-1] < 3 or 0 in images.shape:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, and images are (batch, height, width, 3), none of them 0.")
    bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero()
    if len(bad):
        raise ValueError(f"{name}: picture {int(bad[0])} holds NaN or infinite values. Look for what failed before it.")


def files_in(name, base, folder):
    """The picture files in a folder of ComfyUI's, sorted. ValueError where there are none, and for anything outside.

    base: "input folder" or "output folder".
    """
    root = {"input folder": folder_paths.get_input_directory, "output folder": folder_paths.get_output_directory}[base]()
    target = os.path.join(root, folder)
    if not folder_paths.is_within_directory(root, target):
        raise ValueError(f"{name}: folder {folder!r} leads out of ComfyUI's {base}. Give one inside it, as a/b.")
    if not os.path.isdir(target):
        raise ValueError(f"{name}: there is no folder {folder!r} in ComfyUI's {base}, {root}. Check the name.")
    names = folder_paths.filter_files_content_types(sorted(os.listdir(target)), ["image"])
    paths = [path for path in (os.path.join(target, each) for each in names) if os.path.isfile(path)]
    if not paths:
        raise ValueError(f"{name}: folder {folder!r} in ComfyUI's {base} holds no pictures. Put PNG or JPEG files in it.")
    for path in paths:
        if not folder_paths.is_within_directory(root, path):
            raise ValueError(f"{name}: {path} is a link that leads out of ComfyUI's {base}. Put the picture itself there.")
    return paths


def pictures_of_folder(name, base, folder):
    paths = files_in(name, base, folder)
    sizes = [with_picture(name, path, size_of) for path in paths]
    for path, size in zip(paths, sizes):
        if size != sizes[0]:
            raise ValueError(
                f"{name}: {os.path.basename(path)} is {size[0]} x {size[1]} and {os.path.basename(paths[0])} "
                f"{sizes[0][0]} x {sizes[0][1]}. Crop or scale all pictures of the folder to one size first."
            )

    def read(start, stop):
        return torch.from_numpy(np.stack([with_picture(name, path, pixels) for path in paths[start:stop]]))

    return Pictures(name, len(paths), sizes[0], read)


def with_picture(name, path, look):
    try:
        with Image.open(path) as image:
            return look(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL says of broken files
        raise ValueError(f"{name}: {path} cannot be read as a picture ({error}). Remove or repair it.") from error


def size_of(image):
    """Without decoding it; so a PNG, which only tells at its end how it is turned, counts as upright here and below."""
    turned = image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation) in TURNED
    return image.size[::-1] if turned else image.size


def pixels(image):
    if image.mode.startswith(("I", "F")):
        raise ValueError("more than 8 bits a channel")
    upright = image if image.format == "PNG" else ImageOps.exif_transpose(image)
    return np.asarray(upright.convert("RGB"), dtype=np.float32) / 255


def check_sets(reference, generated, neighbours):
    for each in (reference, generated):
        if each.count < 2:
            raise ValueError(f"{each.name}: {each.count} pictures, and a distribution needs at least 2. Raise the batch size.")
        if each.count <= neighbours:
            raise ValueError(
                f"neighbours is {neighbours}, and {each.name} holds {each.count} pictures: each needs that many beside itself. "
                f"Add pictures, or give at most {each.count - 1}."
            )
    if reference.size != generated.size:
        (w, h), (width, height) = reference.size, generated.size
        raise ValueError(
            f"generated: pictures of {width} x {height}, and those of reference are {w} x {h}: the difference in resolution "
            "would be measured too. Scale one of them with Upscale Image."
        )
