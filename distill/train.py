"""The training loop. One optimiser step is a transaction: whatever happens, what is kept is the state after a whole step."""

import math
import time

import torch

from .checkpoints import Checkpoints, check_room, check_same, parameters_of, restore_parameters, save_tensors
from .ema import update as update_average
from .optimisers import OPTIMISERS, as_used, restore, state_of
from .progress import Counters, Events, Result, unbroken
from .rates import rate
from .shares import clip, of_gradient, of_loss

TIMED = 5  # steps that are timed before a run of so many minutes is planned
SLOWER = 3  # steps in a row without finite numbers, after which the learning rate is halved
GIVE_UP = 10  # after which the run ends


class Training:
    """A run. ``run()`` trains; made over a folder with states of the same run, it goes on where the last one ended.

    loss: ``loss(batch) -> (B,)``. data: ``batch.Data`` or anything with its ``batch``. student, average, previous: modules with the
    same parameters, those that the roles play; average receives the moving average, previous the student as each stage ends.
    recipe: a Recipe. fingerprint: of the base model, a text. folder: where states go; None saves nothing. stage: a function of
    progress. score: ``score() -> float``, the lower the better, asked at each save; the best student is kept as best.safetensors.
    parts: {name: parameters of the student}, whose shares of the gradient are recorded. times: ``times(batch)`` (B,) once its loss
    is known, the times that the student was shown, by thirds of which the loss is recorded. Neither changes what is learnt.
    ValueError where the folder holds a run of another recipe or model; OSError where its disk has no room for the states.
    """

    def __init__(
        self, loss, data, student, recipe, *, average=None, previous=None, fingerprint="", folder=None, stage=lambda progress: 0,
        score=None, events=None, parts=None, times=None,
    ):  # fmt: skip
        self.loss, self.data, self.student, self.average, self.previous = loss, data, student, average, previous
        self.recipe, self.fingerprint, self.stage, self.score = recipe, fingerprint, stage, score
        self.events = events or Events()
        self.params = [p for p in student.parameters() if p.requires_grad]
        number = {id(p): i for i, p in enumerate(self.params)}
        self.parts = {name: [number[id(p)] for p in params] for name, params in (parts or {}).items()}
        self.times = times
        settings, run = recipe.optimiser, recipe.run
        self.kind = OPTIMISERS[settings["name"]]
        self.optimiser = self.kind.make(self.params, recipe.lr, settings["weight_decay"])
        self.counters = Counters(steps=run["steps"], micro_batch=run["micro_batch"] or run["batch"])
        self.checkpoints = Checkpoints(folder) if folder is not None else None
        self.saved_at = None
        if self.checkpoints is not None:
            self._resume()
            check_room(folder, 3 * self._size(), "two states of the run, and one while it is written,")

    # What a run is made of

    def run(self):
        """Train to the end. Result. Anything raised on the way, an interruption included, is raised after saving."""
        ended, unsaved = "done", None
        self.events.planned(self.counters.steps)
        with torch.inference_mode(False), torch.enable_grad():
            try:
                while self.counters.step < self.counters.steps:
                    row = self._step()
                    if self.counters.step == TIMED and self.recipe.run["minutes"]:
                        self._plan()
                        self.events.planned(self.counters.steps)
                    self.events.stepped(row)
                    if self.counters.in_a_row >= GIVE_UP:
                        ended = "diverged"
                        self.events.warned(f"{GIVE_UP} steps in a row gave no finite numbers: the run ends as it was before.")
                        break
                    if self.counters.step % self.recipe.run["save_every"] == 0:
                        self._try_to_save()
            except BaseException:
                self._try_to_save()
                raise
            unsaved = self._try_to_save()
            if ended == "done" and self.counters.steps < self.recipe.run["steps"]:
                ended = "time"
        return Result(self.used, ended, self.counters, unsaved)

    @property
    def used(self):
        """The module that is the result."""
        return self.student if self.average is None else self.average

    def progress(self):
        return self.counters.step / self.counters.steps

    # One step

    def _step(self):
        counters, started = self.counters, time.monotonic()
        self._begin_stage()
        self._set_rate()
        (loss, by_level), micro_batch = self._gradients()
        norm, norms = clip(self.params, self.recipe.optimiser["clip"])
        finite = math.isfinite(loss) and math.isfinite(norm)
        with unbroken():
            counters.micro_batch = micro_batch
            if finite:
                self.optimiser.step()
                if self.average is not None:
                    with as_used(self.optimiser):
                        update_average(self.average, self.student, self.recipe.optimiser["ema"], counters.updates)
                counters.updates, counters.in_a_row = counters.updates + 1, 0
            else:
                self._count_skipped()
            counters.step += 1
            counters.seconds += time.monotonic() - started
            row = {
                "step": counters.step, "loss": loss if math.isfinite(loss) else None, "gradient": norm if math.isfinite(norm) else None,
                "rate": self.optimiser.param_groups[0]["lr"], "skipped": not finite, "seconds": counters.seconds,
                "gradient_shares": of_gradient(self.parts, norms) if finite else None, "loss_parts": by_level if finite else None,
            }  # fmt: skip
            counters.history.append(row)
        self.optimiser.zero_grad()
        return row

    def _begin_stage(self):
        stage = self.stage(self.progress())
        if stage > self.counters.stage:
            with torch.no_grad(), as_used(self.optimiser):
                for kept, now in zip(self.previous.parameters(), self.student.parameters(), strict=True):
                    kept.copy_(now)
            self.counters.stage = stage

    def _set_rate(self):
        settings, counters = self.recipe.optimiser, self.counters
        schedule = "constant" if self.kind.own_schedule else settings["schedule"]
        factor = rate(counters.step, counters.steps, schedule=schedule, warmup=settings["warmup"], floor=settings["floor"])
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * factor * counters.slower

    def _gradients(self):
        """(what _accumulate gives, items at once) of this step, its gradient left in the parameters. Memory runs out: again, in
        smaller parts.
        """
        micro_batch = self.counters.micro_batch
        while True:
            try:
                return self._accumulate(micro_batch), micro_batch
            except torch.OutOfMemoryError:
                if micro_batch == 1:
                    raise
            # Here, not above: what the exception holds on to is freed first.
            self.optimiser.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            smaller = max(1, micro_batch // 2)
            self.events.warned(
                f"memory ran out with {micro_batch} items at once: step {self.counters.step + 1} is made again with {smaller}, and "
                "so are all that follow. The gradient stays that of the whole batch."
            )
            micro_batch = smaller

    def _accumulate(self, micro_batch):
        """(mean loss, its parts by noise level), the gradient left in the parameters."""
        size, values, times = self.recipe.run["batch"], [], []
        self.optimiser.zero_grad()
        for first in range(0, size, micro_batch):
            items = range(first, min(first + micro_batch, size))
            batch = self.data.batch(self.counters.step, items, self.progress())
            losses = self.loss(batch)
            (losses.sum() / size).backward()
            values += losses.detach().tolist()
            times += [] if self.times is None else self.times(batch).tolist()
        return sum(values) / size, of_loss(times, values, size) if times else {}

    def _count_skipped(self):
        counters = self.counters
        counters.skipped, counters.in_a_row = counters.skipped + 1, counters.in_a_row + 1
        if counters.in_a_row % SLOWER == 0:
            counters.slower /= 2
            self.events.warned(f"{counters.in_a_row} steps in a row gave no finite numbers: the learning rate is halved.")

    def _plan(self):
        """Only as many steps as fit into the run's minutes, those made before it was gone on with among them."""
        counters, minutes = self.counters, self.recipe.run["minutes"]
        if minutes and counters.step >= TIMED:
            fitting = int(60 * minutes / (counters.seconds / counters.step))
            counters.steps = max(counters.step, min(counters.steps, fitting))

    # States on disk

    def _modules(self):
        roles = {"student": self.student, "average": self.average, "previous": self.previous}
        return {role: module for role, module in roles.items() if module is not None}

    def _size(self):
        a_role = sum(p.numel() * p.element_size() for p in self.params)
        return a_role * (len(self._modules()) + 2)  # two moments

    def _identity(self):
        return {"recipe": self.recipe.identity(), "model": self.fingerprint}

    def _resume(self):
        found = self.checkpoints.latest()
        if found is None:
            return
        tensors, info = found
        check_same(info["identity"], self._identity(), self.checkpoints.folder, "a run")
        for role, module in self._modules().items():
            restore_parameters(module, tensors, f"{role}.")
        moments = {name.removeprefix("optimiser."): value for name, value in tensors.items() if name.startswith("optimiser.")}
        restore(self.optimiser, moments, info["optimiser"])
        self.counters = Counters(**info["counters"])
        asked = {name: self.recipe.run[name] for name in ("steps", "minutes")}
        if asked != info["asked"]:  # continued for longer, or cut short
            self.counters.steps = max(self.recipe.run["steps"], self.counters.step)
            self._plan()
        self.saved_at = self.counters.step

    def save(self):
        """Write the state after the last whole step, and the LoRA as it is to be used. OSError where that fails."""
        if self.checkpoints is None or self.saved_at == self.counters.step:
            return
        moments, rest = state_of(self.optimiser)
        tensors = {f"optimiser.{name}": value for name, value in moments.items()}
        for role, module in self._modules().items():
            tensors |= parameters_of(module, f"{role}.")
        asked = {name: self.recipe.run[name] for name in ("steps", "minutes")}
        self._keep_best()
        info = {"identity": self._identity(), "asked": asked, "counters": vars(self.counters), "optimiser": rest}
        self.checkpoints.save(self.counters.step, tensors, info)
        self._export("lora.safetensors")
        self.saved_at = self.counters.step
        self.events.saved(self.counters.step, self.checkpoints.folder)

    def _keep_best(self):
        if self.score is None:
            return
        with torch.no_grad(), as_used(self.optimiser):
            score = self.score()
        if math.isfinite(score) and (self.counters.best is None or score < self.counters.best["score"]):
            self.counters.best = {"step": self.counters.step, "score": score}
            self._export("best.safetensors")

    def _export(self, name):
        with as_used(self.optimiser):
            tensors = self.used.state() if hasattr(self.used, "state") else parameters_of(self.used, "")
        save_tensors(self.checkpoints.folder / name, tensors)

    def _try_to_save(self):
        """Why it could not be saved, or None. The run goes on without: what it has learnt is in memory, and the disk may be freed."""
        try:
            self.save()
        except OSError as error:
            self.events.warned(f"The state after step {self.counters.step} was not saved. {error}")
            return str(error)
        return None
