"""A cache on a MODEL: which evaluations of its network are skipped in a run, and what stands in for them.

One keyed wrapper of APPLY_MODEL. What is remembered belongs to one run, and in it to one set of prompts: the identities that ComfyUI
gives its conditions, the context window, and whether a ControlNet or a LoRA on a schedule acts. Anything new is evaluated first.
"""

from dataclasses import dataclass, field, replace

from comfy.patcher_extension import WrappersMP

from ..samplers.caching.part import Part
from ..samplers.caching.policy import Step, change, error
from ..samplers.core import append_dims, complete
from .host import ANSWERED, RUNS, recorders, solver_of, window_of, with_run_state
from .host_sites import Prediction, Site

CACHE = "distillery_cache"
NAMES = {CACHE: "a Cache node", "easycache": "core's EasyCache", "lazycache": "core's LazyCache"}  # keys of wrappers


@dataclass(frozen=True)
class Plan:
    """policy and forecast are registry entries with their knobs; given is what a policy is told that is no knob, such as a mask."""

    policy: Part
    policy_knobs: dict
    forecast: Part
    forecast_knobs: dict
    site: Site
    given: dict = field(default_factory=dict)
    remark: str = ""  # for the report

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
        run.answered.clear()
    return executor(x, timestep, model_options, seed)


def apply_model(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
    run = transformer_options.get(RUNS, {}).get(CACHE)

    def call():
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    if run is None:  # another MODEL's run calls this one
        return call()
    track = run.track(executor.class_obj, x, control, transformer_options)
    if track is None:
        return call()
    return track.evaluate(call, executor.class_obj.diffusion_model, x, transformer_options)


class Run:
    """The plan at work in one sampling run."""

    def __init__(self, plan, run):
        self.plan, self.sigmas, self.tracks, self.step = plan, run["sigmas"].tolist(), {}, 0
        self.answered = set()  # keys of the present prediction
        later = {key: name for key, name in NAMES.items() if key != CACHE}  # which came after this one
        refuse(run["guider"].model_options["transformer_options"]["wrappers"], later)
        solver, _ = solver_of(run["sampler"])
        if solver is not None and solver.mixes_sigmas:
            raise ValueError("sampler runs several steps at once, which a cache cannot follow: use another sampler, or remove the cache.")
        mask = plan.given.get("mask")
        if mask is not None and len(mask) != len(self.sigmas) - 1:
            raise ValueError(f"mask has {len(mask)} steps and this run {len(self.sigmas) - 1}: give one entry for each step.")

    def track(self, model, x, control, options):
        """What is remembered of such calls. None for a further one in the same prediction: by a node with a purpose of its own."""
        hooks = getattr(model.current_patcher, "current_hooks", None)
        key = (
            tuple(options["uuids"]), window_of(options), tuple(x.shape), control is not None,
            tuple((id(hook), hook.strength) for hook in hooks.hooks) if hooks else (),
            tuple(map(id, patches_in([options.get("patches"), options.get("patches_replace")]))),
        )  # fmt: skip
        if key in self.answered:
            return None
        self.answered.add(key)
        sigma = float(options["sigmas"][0])
        place = self.place(sigma)
        track = self.tracks.get(key)
        if track is None or place < track.place or sigma > track.step.sigma * (1 + 1e-6):  # noise was added: another trajectory
            track = self.tracks[key] = Track(self.plan)
        track.moves_to(place, sigma, len(self.sigmas) - 1)
        return track

    def place(self, sigma):
        """Where in the schedule: the number of the step, and a share of the way to the next. Where noise is added again: the next such."""
        level, last = sigma * (1 - 1e-6), len(self.sigmas) - 2
        pairs = enumerate(zip(self.sigmas, self.sigmas[1:]))  # a step up holds its own level alone
        around = [step for step, (high, low) in pairs if high >= level > min(low, high * (1 - 2e-6))]
        around = around or [0 if level > self.sigmas[0] else last]
        self.step = next((step for step in around if step >= self.step), around[0])
        high, low = self.sigmas[self.step], self.sigmas[self.step + 1]
        return self.step + min(max((high - sigma) / (high - low), 0.0), 0.999) if high > low else float(self.step)


def patches_in(entries):
    """Every patch of the network in nested lists and dicts: with others, as in perturbed attention, it is another network."""
    if isinstance(entries, dict):
        entries = entries.values()
    elif not isinstance(entries, (list, tuple)):
        return [] if entries is None else [entries]
    return [patch for entry in entries for patch in patches_in(entry)]


class Track:
    """What one set of prompts remembers of its evaluations."""

    def __init__(self, plan):
        self.plan, self.policy = plan, plan.begin()
        self.forecasts = None
        self.place, self.decided = -1.0, None
        self.input = self.signal = self.run_input = self.run_signal = self.output = self.size = None

    def moves_to(self, place, sigma, steps):
        if int(place) != int(self.place):
            self.decided = None  # a solver's further evaluations within a step go by its first one's decision
        self.place = place
        self.step = Step(int(place), steps, sigma)

    def evaluate(self, call, network, x, options):
        """The model's prediction for x (B, C, ..., H, W), denoised, evaluated or stood in for."""
        whole, begins = isinstance(self.plan.site, Prediction), self.forecasts is None
        sigma = append_dims(options["sigmas"].repeat(len(x) // len(options["sigmas"])), x)
        if "latents" in self.policy.needs:
            self.policy.observe(x, None, self.step.sigma)

        def decide(signal):
            first = self.decided is None
            if first:
                self.measure(x, signal)
                self.decided = bool(self.policy.decide(self.step))
                if not self.decided and self.ready:
                    self.policy.skipped(self.step)
            if self.decided or not self.ready:
                return None
            values = [forecast.predict(self.place) for forecast in self.forecasts]
            return [x - sigma * value for value in values] if whole else values  # the whole prediction is kept as d

        done = self.plan.site.evaluate(call, network, decide, given=x)
        if done.kept is not None:
            kept = [(x - tensor) / sigma for tensor in done.kept] if whole else done.kept
            self.learn(x, kept, done.output)
            if "latents" in self.policy.needs:
                self.policy.observe(x, ((x - done.output) / sigma).to(x), self.step.sigma)
        options[ANSWERED] = done.skipped and whole
        self.tell(options, done, begins)
        return done.output

    @property
    def ready(self):
        return self.forecasts is not None and all(forecast.ready for forecast in self.forecasts)

    def measure(self, x, signal):
        """What the policy wants to know before it decides, as floats: one wait for the device each."""
        measured = {}
        if "input_change" in self.policy.needs:
            measured["input_change"] = change(x, self.input)
        if "signal_since_run" in self.policy.needs:
            measured["signal_since_run"] = change(signal, self.run_signal)
        if "signal_since_step" in self.policy.needs:
            measured["signal_since_step"] = change(signal, self.signal)
        self.input, self.signal = x, signal
        self.step = replace(self.step, **measured)

    def learn(self, x, kept, output):
        """After an evaluation: what the policy wants to know of it, and the forecasts' new values."""
        needs, measured = self.policy.needs, {}
        if "forecast_error" in needs and self.ready:
            measured["forecast_error"] = error([forecast.predict(self.place) for forecast in self.forecasts], kept)
        if "residual_ratio" in needs:
            size = float(sum(tensor.float().abs().mean() for tensor in kept))
            measured["residual_ratio"] = size / self.size if self.size else None
            self.size = size
        if "output_change" in needs:
            measured["output_change"], measured["run_input_change"] = change(output, self.output), change(x, self.run_input)
        self.step = replace(self.step, **measured)
        self.policy.ran(self.step)
        if self.forecasts is None or len(self.forecasts) != len(kept):
            self.forecasts = [self.plan.forecast.begin(self.plan.forecast_knobs) for _ in kept]
        for forecast, tensor in zip(self.forecasts, kept, strict=True):
            forecast.observe(self.place, tensor)
        self.run_input, self.run_signal, self.output = x, self.signal, output

    def tell(self, options, done, begins):
        """Every report of this run: what was done for each of the call's conditions. begins: nothing was known of them before."""
        conditions = options["cond_or_uncond"]
        reason = self.policy.reason if self.decided or not begins else "nothing to skip with yet"
        values = {} if self.policy.predicted is None else {"predicted error": float(self.policy.predicted)}
        for recorder in recorders(options):
            for condition in conditions:
                recorder.note(
                    condition, skipped=1 if options[ANSWERED] else 0, decision="skip" if done.skipped else "run",
                    reason=self.plan.remark + reason, values=values, blocks=(done.done, done.left_out),
                )  # fmt: skip
