"""What a cache remembers of each condition in a run."""

import torch

from ..samplers.caching.policy import Step, change, error
from .host_sites import Prediction

NEAR = 1e-4  # of a step: places that are the same but for rounding


class Track:
    """What is remembered of one condition's evaluations: a policy, a forecast of each kept tensor, and what they compare with."""

    def __init__(self, plan):
        self.plan, self.policy = plan, plan.begin()
        self.forecasts = None
        self.place, self.step, self.opened = -1.0, None, float("inf")  # opened: the noise level at which its latest step began
        self.missed = 0  # steps since then in which the condition was not asked for
        self.wanted, self.decided = True, None  # to evaluate this step: by its own policy, and with all that share the call
        self.decoded = {}  # place: what the network will make of what is kept
        self.unsettled = []  # evaluations whose measurements the policy does not know yet
        self.input = self.signal = self.run_input = self.run_signal = self.output = self.size = None

    def moves_to(self, steps):
        if self.step is None or steps.index != self.step.index:
            self.decided = None  # a solver's further evaluations within a step go by its first one's decision
            self.missed = steps.index - self.step.index - 1 if self.step else 0
            self.opened = steps.sigma
        self.place = steps.place
        self.step = Step(steps.index, steps.count, steps.sigma, sigma_next=steps.sigmas[steps.index + 1])

    @property
    def ready(self):
        return self.forecasts is not None and all(forecast.ready for forecast in self.forecasts)

    @property
    def memory(self):
        """Bytes of the tensors kept for later steps."""
        compared = (self.input, self.signal, self.run_input, self.run_signal, self.output)
        held = {id(tensor): tensor.nbytes for tensor in (*compared, *self.decoded.values()) if tensor is not None}
        return sum(held.values()) + self.policy.memory + sum(forecast.memory for forecast in self.forecasts or ())

    def forecast(self, place, device):
        """What the kept tensors would be there."""
        return [forecast.predict(place).to(device) for forecast in self.forecasts]

    def asks(self, x, signal):
        """Before a decision: measure what the policy wants to know."""
        found, needs = {}, self.policy.needs
        if "input_change" in needs:
            found["input_change"] = change(x, self.input)
            self.input = x
        if "signal_since_run" in needs:
            found["signal_since_run"] = change(signal, self.run_signal)
        if "signal_since_step" in needs:
            found["signal_since_step"] = change(signal, self.signal)
        if needs:
            self.signal = signal
        if "latents" in needs:
            found["latent_error"] = self.policy.observe(x, None, self.step.sigma)
        self.unsettled.append((self.step, found))

    def ends(self, skipped):
        """What became of the call: another condition in it may have had to be evaluated."""
        self.decided = not skipped

    @property
    def waiting(self):
        """Measurements, tensors of one number each or None, that ``decide`` is to be given as numbers."""
        return [tensor for _, found in self.unsettled for tensor in found.values()]

    def decide(self, numbers):
        """numbers: an iterator that begins with those of ``waiting``."""
        for step, found in self.unsettled:
            for field, number in zip(found, numbers):
                setattr(step, field, number)
        for step, _ in self.unsettled[:-1]:
            self.policy.ran(step)
        self.unsettled.clear()
        self.policy.in_a_row += self.missed  # it is as old as if they had been skipped
        self.missed = 0
        self.wanted = self.decided = bool(self.policy.decide(self.step))

    def learn(self, x, kept, output):
        """After an evaluation: measure what the policy will want to know of it, and tell the forecasts."""
        found, needs = {}, self.policy.needs
        if "forecast_error" in needs and self.forecasts and not isinstance(self.plan.site, Prediction):
            self.step.forecast_distance, found["forecast_error"] = foretold(self.forecasts, self.place, kept)
        if "residual_ratio" in needs:
            size = sum(tensor.float().abs().mean() for tensor in kept)
            found["residual_ratio"] = None if self.size is None else size / self.size
            self.size = size
        if "output_change" in needs:
            found["output_change"], found["run_input_change"] = change(output, self.output), change(x, self.run_input)
            self.run_input, self.output = x, output
        if "latents" in needs:
            self.policy.observe(x, (x - output) / self.step.sigma, self.step.sigma)
        self.run_signal = self.signal if "signal_since_run" in needs else None
        self.unsettled.append((self.step, found))
        self.decoded.clear()
        if self.forecasts is None or len(self.forecasts) != len(kept):
            self.forecasts = [self.plan.forecast.begin(self.plan.forecast_knobs) for _ in kept]
        for forecast, tensor in zip(self.forecasts, kept, strict=True):
            observe(forecast, self.place, tensor.cpu() if self.plan.offload else tensor)


def observe(forecast, place, tensor):
    """Unless the solver went back behind the newest value, as heunpp2 does after each step."""
    newest = forecast.ats[-1] if forecast.ats else place
    if place > newest - NEAR:
        forecast.observe(newest if place < newest + NEAR else place, tensor)


def foretold(forecasts, place, tensors):
    """(how many steps the forecasts reach to this place, their error there); (None, None) where they know it already, or nothing."""
    distance = place - forecasts[0].ats[-1] if all(forecast.ready for forecast in forecasts) else 0
    if distance < NEAR or len(forecasts) != len(tensors):
        return None, None
    return distance, error([forecast.predict(place).to(tensor) for forecast, tensor in zip(forecasts, tensors)], tensors)


class Guided:
    """The whole prediction as the solver gets it, guidance and all: how well the forecast would have foretold it."""

    def __init__(self, plan):
        self.plan, self.slopes = plan, plan.forecast.begin(plan.forecast_knobs)

    def learn(self, x, prediction, tracks):
        """After an evaluation for these tracks: what their policies will want to know of it."""
        policy, step, place = tracks[0].policy, tracks[0].step, tracks[0].place
        if "speed" not in policy.needs:
            return
        slope = (x - prediction) / step.sigma
        found, whole = {"speed": slope.norm() / x.norm()}, isinstance(self.plan.site, Prediction)
        if whole:
            distance, found["forecast_error"] = foretold([self.slopes], place, [slope])
            observe(self.slopes, place, slope.cpu() if self.plan.offload else slope)
        for track in tracks:
            evaluated, measured = track.unsettled[-1]
            measured.update(found)
            if whole:
                evaluated.forecast_distance = distance

    @property
    def memory(self):
        return self.slopes.memory


def numbers(tensors):
    """Of tensors of one number each, None where there is none: the same as floats, in one wait for the device."""
    there = [tensor.float() for tensor in tensors if tensor is not None]
    values = iter(torch.stack(there).tolist() if there else ())
    return [None if tensor is None else next(values) for tensor in tensors]
