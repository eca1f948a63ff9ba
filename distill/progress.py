"""What a run counts and tells, and how it is not broken off within a step."""

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


class Events:
    """What a run tells while it goes on. Subclass it; what ``stepped`` raises (an interruption) ends the run, saved."""

    def planned(self, steps):
        """How many steps the run is of: at its start, and again when its minutes have been planned."""

    def stepped(self, row):
        """After each step: {"step", "loss", "gradient", "rate", "skipped", "seconds", "gradient_shares", "loss_parts"}.

        gradient_shares: {part of the network: its share of the squared norm}. loss_parts: {third of the noise levels: what it adds to
        the loss}. Both empty where Training was not told how. Loss, gradient and these are None where they were not finite.
        """

    def warned(self, text):
        """Something the user should know, and what was done about it."""

    def saved(self, step, folder):
        """The state after this step is on the disk."""


@dataclass
class Counters:
    """What a run must remember beside its tensors."""

    step: int = 0
    steps: int = 0  # of the whole run, as planned
    updates: int = 0  # steps that were not skipped
    skipped: int = 0
    in_a_row: int = 0  # skipped just now
    slower: float = 1.0  # what the learning rate is multiplied by
    micro_batch: int = 0
    stage: int = 0
    seconds: float = 0.0
    best: dict | None = None  # {"step", "score"}
    history: list = field(default_factory=list)  # a row for each step


@dataclass(frozen=True)
class Result:
    """student: the module to use, trained. ended: "done", "time" or "diverged". counters: with the history of losses.

    unsaved: why the last state could not be saved, or None.
    """

    student: torch.nn.Module
    ended: str
    counters: Counters
    unsaved: str | None


@contextmanager
def unbroken():
    """Holds back the keyboard's interruption until the block is done. Only a program's main thread ever receives one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt
