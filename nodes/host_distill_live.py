"""What a run of training shows while it goes on: ComfyUI's progress bar, curves and a sample on the node, words in the log."""

import logging
import time

import comfy.model_management
import comfy.utils
import latent_preview
import numpy as np
import torch
from PIL import Image

from ..measure.plots import NoMatplotlib
from ..measure.training_curves import draw
from .host_distill import Watch

EVERY = 10  # seconds between pictures, at least
SHARE = 0.05  # of the time that pictures may take
HEIGHT = 600  # of a preview, in pixels
log = logging.getLogger(__name__)


class Live(Watch):
    """A Watch that moves ComfyUI's bar, sends pictures to the node, and stops within a step of the user's interruption.

    pictures: whether to make any. warnings: what was said, for the node's words.
    """

    def __init__(self, model, pictures=True):
        self.model, self.pictures = model, pictures
        self.history, self.warnings, self.sample, self.bar = [], [], None, None
        self.next = 0.0

    def made(self, number, count):
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(count)
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(number, count)

    def training(self, sample, history):
        self.bar, self.sample, self.history = None, sample, list(history)
        self.next = time.monotonic() + EVERY
        device, latent_format = self.model.load_device, self.model.get_model_object("latent_format")
        self.previewer = latent_preview.get_previewer(device, latent_format)

    def planned(self, steps):
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(steps)
        self.bar.total = steps

    def stepped(self, row):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.history.append(row)
        self.bar.update_absolute(row["step"], self.bar.total, self.picture() if self.pictures else None)

    def warned(self, text):
        log.warning("Distillery: %s", text)
        self.warnings.append(text)

    def picture(self):
        """What to send with this step: ("JPEG", picture, largest side), or None while it is too early."""
        started = time.monotonic()
        if started < self.next:
            return None
        try:
            picture = beside(curves(self.history), self.student())
        except torch.OutOfMemoryError:
            self.pictures = False
            self.warned("memory ran out while a preview was made: there are no more of them.")
            return None
        took = time.monotonic() - started
        self.next = started + took + max(EVERY, took / SHARE)
        return picture and ("JPEG", picture, max(picture.size))

    def student(self):
        """A sample of the student as ComfyUI's own previews would decode it, or None where it has no decoder for this model."""
        if self.previewer is None:
            return None
        return self.previewer.decode_latent_to_preview_image("JPEG", self.sample().to(self.model.load_device))[1]


def curves(history):
    """A picture of the curves, or None without matplotlib."""
    try:
        return Image.fromarray((draw(history)[0].numpy() * 255).round().astype(np.uint8))
    except NoMatplotlib:
        return None


def beside(*pictures):
    """The pictures that there are, side by side at one height."""
    found = [each.resize((round(each.width * HEIGHT / each.height), HEIGHT)) for each in pictures if each is not None]
    if not found:
        return None
    whole = Image.new("RGB", (sum(each.width for each in found), HEIGHT))
    for i, each in enumerate(found):
        whole.paste(each, (sum(other.width for other in found[:i]), 0))
    return whole
