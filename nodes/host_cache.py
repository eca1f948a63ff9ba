"""A cache on a MODEL: which evaluations of its network are skipped in a run, and what stands in for them.

One keyed wrapper of APPLY_MODEL. What is remembered belongs to one run, and in it to one condition: the identity that ComfyUI gives
it, the context window, and whether a ControlNet or a LoRA on a schedule acts. Anything new is evaluated first. Conditions that share
a call of the network are skipped where all of them may be.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from comfy.model_management import get_free_memory
from comfy.patcher_extension import WrappersMP

from ..samplers.caching.mask import check_mask
from ..samplers.caching.part import Part
from ..samplers.core import append_dims, complete
from .architectures import plain
from .host import ANSWERED, RUNS, recorders, solver_of, window_of, with_run_state
from .host_cache_tracks import Guided, Track, numbers
from .host_sites import Decoded, Prediction, Site, mixes
from .host_steps import Steps

CACHE = "distillery_cache"
FORGOTTEN = 8  # steps after which a condition that was not asked for is forgotten
NAMES = {CACHE: "a Cache node", "easycache": "core's EasyCache", "lazycache": "core's LazyCache"}  # keys of wrappers


@dataclass(frozen=True)
class Plan:
    """policy and forecast are registry entries with their knobs; given is what a policy is told that is no knob, such as a mask.

    offload: what is kept waits in the CPU's memory. memory_limit: in MiB, of what is kept; 0 is none.
    """

    policy: Part
    policy_knobs: dict
    forecast: Part
    forecast_knobs: dict
    site: Site
    given: dict = field(default_factory=dict)
    remark: str = ""  # for the report
    offload: bool = False
    memory_limit: float = 0.0

    def begin(self):
        return self.policy.begin(self.policy_knobs, **self.given)


def with_cache(model, plan):
    """A clone that follows the plan. With the policy's neutral settings nothing is hooked.

    ValueError for a network that lacks the site, for settings that contradict each other, and for a model with a cache already.
    """
    complete(plan.forecast.knobs, plan.forecast_knobs)
    plan.begin()
    if plan.policy.is_neutral(plan.policy_knobs):
        return model.clone()
    network = model.model.diffusion_model
    if not plan.site.fits(network):
        raise ValueError(
            f"site is {plan.site.title}, which the network {type(network).__name__} does not have: use the whole prediction, which "
            "every network has."
        )
    if plan.site.parallel and not plan.begin().foreseen:
        raise ValueError(
            f"site decodes ahead in parallel, and policy {plan.policy.title} does not know which steps it will skip: use interval or mask, or "
            "turn parallel off."
        )
    refuse(model.wrappers, NAMES)
    model, _ = with_run_state(model, lambda run: Run(plan, run), token=CACHE)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, CACHE, predict_noise)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, CACHE, apply_model)
    return model


def refuse(wrappers, names):
    """ValueError where one of these keys is among the wrappers: {kind: {key: wrappers}}."""
    found = [name for key, name in names.items() if any(key in by_key for by_key in wrappers.values())]
    if found:
        raise ValueError(f"model already has {found[0]}: two caches would skip what the other one measures. Keep one of them.")


def predict_noise(executor, x, timestep, model_options, seed):
    run = model_options["transformer_options"].get(RUNS, {}).get(CACHE)
    if run is not None:
        run.steps.evaluated(float(timestep[0]))
        run.answered.clear()
    prediction = executor(x, timestep, model_options, seed)
    if run is not None:
        run.learn(x, prediction)
    return prediction


def apply_model(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
    run = transformer_options.get(RUNS, {}).get(CACHE)

    def call():
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def call_at(sigmas):
        """All of these noise levels in one batch, which no report counts."""
        count, levels = len(sigmas), t.new_tensor(sigmas).repeat_interleave(len(x))
        options = {**transformer_options, "sigmas": levels, ANSWERED: True}
        options |= {name: list(options[name]) * count for name in ("cond_or_uncond", "uuids")}
        again = {name: repeated(value, len(x), count) for name, value in kwargs.items()}
        parts = (repeated(part, len(x), count) for part in (c_concat, c_crossattn))
        return executor(torch.cat([x] * count), levels, *parts, None, options, **again)

    tracks = run and run.tracks_of(executor.class_obj, x, control, transformer_options)  # no run: another MODEL's calls this one
    if not tracks:
        return call()
    network = executor.class_obj.diffusion_model
    output = run.evaluate(tracks, call, network, x, transformer_options)
    if control is None:
        run.look_ahead(tracks, call_at, executor.class_obj, x, transformer_options)
    return output


def repeated(value, rows, count):
    """A tensor of so many rows, or a list of them, so many times one after another. All else belongs to the batch as a whole."""
    if isinstance(value, list):
        return [repeated(part, rows, count) for part in value]
    return torch.cat([value] * count) if torch.is_tensor(value) and value.ndim and len(value) == rows else value


class Run:
    """The plan at work in one sampling run."""

    def __init__(self, plan, run):
        self.plan, self.steps, self.tracks = plan, Steps(run["sigmas"].tolist()), {}
        self.guided = Guided(plan)
        self.answered = set()  # keys of the present prediction
        self.kept, self.full = 0, ""  # bytes at most; why nothing is kept any more
        later = {key: name for key, name in NAMES.items() if key != CACHE}  # which came after this one
        refuse(run["guider"].model_options["transformer_options"]["wrappers"], later)
        solver, _ = solver_of(run["sampler"])
        if solver is not None and solver.mixes_sigmas:
            raise ValueError("sampler runs several steps at once, which a cache cannot follow: use another sampler, or remove the cache.")
        if "mask" in plan.given:
            check_mask(plan.given["mask"], self.steps.count)
        callback = run["callback"]

        def step_started(step, denoised, x, total_steps):
            self.steps.announced(step)
            if callback is not None:
                callback(step, denoised, x, total_steps)

        run["callback"] = step_started

    def tracks_of(self, model, x, control, options):
        """What is remembered of each condition of this call; of a network that mixes them, of all together.

        Empty for a further evaluation in the same prediction: by a node with a purpose of its own.
        """
        hooks = getattr(model.current_patcher, "current_hooks", None)
        uuids = options["uuids"]
        conditions = [(uuid, uuids[:i].count(uuid)) for i, uuid in enumerate(uuids)]  # a prompt has one identity in all areas
        if mixes(model.diffusion_model) and not isinstance(self.plan.site, Prediction):
            conditions = [tuple(uuids)]
        circumstances = (
            window_of(options), len(x) // len(conditions), tuple(x.shape[1:]), control and shape_of(control),
            tuple((id(hook), hook.strength) for hook in hooks.hooks) if hooks else (),
            tuple(map(identity, patches_in([options.get("patches"), options.get("patches_replace")]))),
        )  # fmt: skip
        keys = [(condition, *circumstances) for condition in conditions]
        if self.answered.intersection(keys):
            return []
        self.answered.update(keys)
        return [self.track(key) for key in keys]

    def track(self, key):
        track, steps = self.tracks.get(key), self.steps
        if track is not None and steps.opens and steps.sigma > track.opened * (1 + 1e-6):  # noise was added: another trajectory
            track, self.guided = None, Guided(self.plan)
        if track is None:
            self.tracks = {key: old for key, old in self.tracks.items() if steps.index - old.step.index <= FORGOTTEN}
            track = self.tracks[key] = Track(self.plan)
        track.moves_to(steps)
        return track

    def evaluate(self, tracks, call, network, x, options):
        """The model's prediction for x (B, C, ..., H, W), denoised, evaluated or stood in for. Each track has its share of the rows."""
        site, count = self.plan.site, len(tracks)
        whole = isinstance(site, Prediction)
        sigma = append_dims(options["sigmas"].repeat(len(x) // len(options["sigmas"])), x)
        shares = x.chunk(count)

        def decide(signal):
            signals = [None] * count if signal is None else signal.chunk(count)
            fresh = [(track, *share) for track, *share in zip(tracks, shares, signals) if track.decided is None]
            for track, share, part in fresh:
                track.asks(share, part)
            found = iter(numbers([tensor for track, *_ in fresh for tensor in track.waiting]))
            for track, *_ in fresh:
                track.decide(found)
            if any(track.decided for track in tracks) or not all(track.ready for track in tracks):
                return None
            for track, *_ in fresh:
                track.policy.skipped(track.step)
            if all(self.steps.place in track.decoded for track in tracks):
                return Decoded(torch.cat([track.decoded[self.steps.place] for track in tracks]))
            forecasts = [track.forecast(self.steps.place, x.device) for track in tracks]
            values = forecasts[0] if count == 1 else [torch.cat(parts) for parts in zip(*forecasts, strict=True)]
            return [x - sigma * value for value in values] if whole else values  # the whole prediction is kept as d

        done = site.evaluate(call, network, decide, given=x)
        for track in tracks:
            track.ends(done.skipped)
        if done.kept is not None and not self.full:
            kept = [(x - tensor) / sigma for tensor in done.kept] if whole else done.kept
            parts = zip(*(tensor.chunk(count) for tensor in kept))
            for track, share, mine, output in zip(tracks, shares, parts, done.output.chunk(count), strict=True):
                track.learn(share, list(mine), output)
            self.weigh()
        options[ANSWERED] = done.skipped and whole
        self.tell(tracks, options, done)
        return done.output

    def learn(self, x, prediction):
        """After a prediction, with its guidance, for x."""
        answered = [self.tracks[key] for key in self.answered if key in self.tracks]
        evaluated = [track for track in answered if track.decided and track.unsettled]
        if evaluated:
            self.guided.learn(x, prediction, evaluated)
            self.weigh()

    def look_ahead(self, tracks, call_at, model, x, options):
        """After an evaluation: what the network makes of what was kept at the steps that are certain to be skipped, all at once.

        Only where a step is one evaluation, at a level of the schedule, and not behind torch.compile; as many as there is memory for.
        """
        site, steps, network = self.plan.site, self.steps, model.diffusion_model
        single = steps.each in (None, 1) and steps.place == steps.index
        possible = site.parallel and tracks[0].decided and single and not self.full and plain(network) is network
        later = tracks[0].policy.ahead(tracks[0].step) if possible else []
        while later and model.memory_required([len(later) * len(x), *x.shape[1:]]) * 1.5 > get_free_memory(x.device):  # core's margin
            later.pop()
        places = [(track, float(step)) for step in later for track in tracks]
        if not places:
            return
        kept = [torch.cat(parts) for parts in zip(*(track.forecast(place, x.device) for track, place in places))]
        made, blocks = site.decode(lambda: call_at([steps.sigmas[step] for step in later]), network, kept)
        for (track, place), part in zip(places, made.chunk(len(places))):
            track.decoded[place] = part
        for recorder in recorders(options):
            for condition in options["cond_or_uncond"]:
                recorder.note(condition, blocks=(blocks * len(later), 0))

    def weigh(self):
        """Above the plan's limit on memory all is forgotten, and nothing is kept from then on."""
        held = self.guided.memory + sum(track.memory for track in self.tracks.values())
        self.kept = max(self.kept, held)
        limit = self.plan.memory_limit
        if limit and held > limit * 2**20:
            self.full = f"what is kept takes {held / 2**20:.1f} MiB, above memory_limit {limit:g}"
            self.tracks.clear()
            self.guided = Guided(self.plan)

    def tell(self, tracks, options, done):
        """Every report of this run: what was done for each of the call's conditions."""
        wanting = [track for track in tracks if track.wanted]
        reason = (wanting or tracks)[0].policy.reason if wanting or done.skipped else "nothing to skip with yet"
        predicted = [track.policy.predicted for track in tracks if track.policy.predicted is not None]
        values = {"predicted error": float(max(predicted))} if predicted else {}
        for recorder in recorders(options):
            recorder.holds(self.kept)
            for condition in options["cond_or_uncond"]:
                recorder.note(
                    condition, skipped=1 if options[ANSWERED] else 0, decision="skip" if done.skipped else "run",
                    reason=self.plan.remark + (self.full or reason), values=values, blocks=(done.done, done.left_out),
                )  # fmt: skip


def shape_of(control):
    """Which places of the network a ControlNet's outputs {name: list of tensors or None} are for."""
    return tuple((name, tuple(entry is not None for entry in entries)) for name, entries in control.items())


def identity(patch):
    """Of a patch that may be made anew for each call, as GLIGEN's is: the code that it runs."""
    while isinstance(patch, partial):
        patch = patch.func
    return id(getattr(patch, "__code__", patch)), id(getattr(patch, "__self__", None))


def patches_in(entries):
    """Every patch of the network in nested lists and dicts: with others, as in perturbed attention, it is another network."""
    if isinstance(entries, dict):
        entries = entries.values()
    elif not isinstance(entries, (list, tuple)):
        return [] if entries is None else [entries]
    return [patch for entry in entries for patch in patches_in(entry)]
