"""A MODEL made ready for the profile it is to be sampled with: which one that is and why, SAMPLER, SIGMAS and CFG."""

import logging
from dataclasses import dataclass, replace

import comfy.samplers
import torch

from ..samplers.turbo import BASES, PROFILES, Problem, Shift, TurboProfile, candidates, problems, sigmas_of
from ..samplers.turbo.detect import is_dedistilled
from . import host, turbo_text
from .host_turbo import sampler_named
from .host_turbo_models import (
    bases_of,
    carried,
    carries,
    class_of,
    file_of,
    path_of,
    prediction_of,
    sampler_name,
    shift_of,
    title_of,
    with_shift,
    with_x0,
)

AUTO = "auto"
log = logging.getLogger(__name__)
DECIDED = ("flux-schnell",)  # bases whose every MODEL is the distilled one, unless its name says that it was trained back
SAME_LEVEL = 2e-3  # relative: written by hand as 14.6; a run at denoise below 1 begins further below the first level


@dataclass(frozen=True)
class Choice:
    """steps: how many to take. why: how the profile was found, in words."""

    profile: TurboProfile
    steps: int
    why: str


@dataclass(frozen=True)
class Prepared:
    """All that one of core's custom samplers needs besides the prompts, the latent and the seed. text: what was chosen and why."""

    choice: Choice
    model: object
    sampler: comfy.samplers.KSAMPLER
    sigmas: torch.Tensor
    text: str

    @property
    def cfg(self):
        return self.choice.profile.cfg


def choose(model, key=AUTO, steps=0):
    """The Choice for a MODEL.

    key: of PROFILES; AUTO goes by what Load Turbo LoRA left on the MODEL, then by its file's name, then by its architecture.
    steps: 0 takes those that the file is for, or else the profile's own default. ValueError where AUTO finds nothing or cannot
    tell, and for steps that are not offered.
    """
    return as_choice(*(_found(model) if key == AUTO else _asked_for(model, key)), steps)


def as_choice(profile, of_file, why, steps=0):
    """The Choice of a profile. of_file: the number of steps that the weights are for, None where for several. steps: as in ``choose``."""
    if steps and steps not in profile.steps:
        raise ValueError(f"steps is {steps}: {profile.title} is offered in {turbo_text.counts(profile.steps)}. Take one of these, or 0.")
    if steps and of_file and steps != of_file:
        why = f"{why}; the weights are for {turbo_text.steps(of_file)}, and others were asked for"
    return Choice(profile, steps or of_file or profile.default_steps, why)


def prepared(model, choice, denoise=1.0, latent=None):
    """Prepared, after a look at whether the MODEL is of the profile's base and predicts what it should.

    denoise: share of the run, from its end. latent: LATENT, for profiles whose noise levels go by its size. ValueError that names
    both sides and the remedy where they contradict each other.
    """
    profile, steps = choice.profile, choice.steps
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise is {denoise}: it must be above 0 and at most 1, which runs all of the profile.")
    check_base(model, profile)
    patched, notes = patch(model, profile, steps, latent)
    notes += [f"{missing.text} {missing.remedy}" for missing in lora_problems(model, profile)]
    sigmas = levels(patched, profile, steps, denoise, latent)
    text = turbo_text.chosen(choice, sigmas, denoise, notes)
    return Prepared(choice, patched, sampler_named(profile.sampler, profile.knobs), sigmas, text)


def prepared_pair(high_model, low_model, key=AUTO, steps=0, denoise=1.0, latent=None):
    """(Prepared of the high-noise model, of the low-noise one, (its SIGMAS, the other's)) for a profile of two networks.

    ValueError for a profile of one, where the models carry different profiles, and where one would have nothing to do.
    """
    choice, other = choose(high_model, key, steps), choose(low_model, key, steps)
    profile = choice.profile
    if other.profile != profile or other.steps != choice.steps:
        raise ValueError(
            f"the high-noise model is for {_in_steps(choice)} and the low-noise model for {_in_steps(other)}: connect the two of one "
            "pair, each with its own LoRA, or choose profile and steps yourself."
        )
    if profile.boundary is None:
        raise ValueError(f"profile is {profile.title}, of one network: use Turbo Sampling, or leave the low-noise model unconnected.")
    high, low = (prepared(model, choice, denoise, latent) for model in (high_model, low_model))
    parts = split(high.sigmas, profile.boundary)
    text = f"{high.text}\nHigh noise: {turbo_text.listed(parts[0])}. Low noise: {turbo_text.listed(parts[1])}."
    return replace(high, text=text), low, parts


def check_one_network(profile, sigmas):
    """ValueError where these noise levels need both networks of a pair."""
    if profile.boundary is not None and sigmas[0] >= profile.boundary > sigmas[-2]:
        raise ValueError(
            f"profile is {profile.title}: of its two networks one works above sigma {profile.boundary:g} and the other below. Connect both "
            "to Turbo Sampling (Two Networks), or low_noise_model of Turbo KSampler."
        )


def with_check(model, profile):
    """A clone that looks for contradictions where each of its runs begins, at the guider's CFG and the noise levels really used.

    ValueError for those that make noise; others go to the log. The run is not changed.
    """

    def begin(run):
        guider = run["guider"]
        cfg = guider.cfg if host.is_plain_cfg(guider) else None
        found = problems_of(guider.model_patcher, profile, run["sampler"], run["sigmas"], cfg)
        refuse(found)
        if found:
            log.warning("Turbo Check: %s", turbo_text.found(found))

    return host.with_run_state(model, begin, token="distillery_turbo_check")[0]


def patch(model, profile, steps, latent=None):
    """(the MODEL, or a clone with what the profile asks for; what was patched, in words).

    That is the shift of a flow, and x0 where a network predicts that and core, which cannot know, takes it for noise.
    """
    if profile.prediction == "x0":
        return with_x0(model), ["MODEL patched: its network predicts the clean latent (x0)."]
    if not profile.is_flow or profile.shift is None:
        return model, []
    shift = profile.shift_at(tokens_of(model, profile, latent), steps)
    patched = with_shift(model, shift)
    return patched, [] if patched is model else [f"MODEL patched: shift {shift:.4g} instead of {shift_of(model):.4g}."]


def levels(model, profile, steps, denoise=1.0, latent=None):
    """SIGMAS of a profile, for a MODEL that has its patches."""
    table = host.timestep_table(model.get_model_object("model_sampling"))
    return sigmas_of(profile, steps, path_of(model), table, denoise, tokens_of(model, profile, latent))


def tokens_of(model, profile, latent=None):
    """How many tokens the network makes of a LATENT, for a profile that goes by them; else None."""
    goes_by_size = latent is not None and isinstance(profile.shift, Shift)
    return host.token_count(model, latent) if goes_by_size else None


def split(sigmas, boundary):
    """(high, low) SIGMAS of a pair of networks, whose high-noise one works at and above the boundary sigma.

    Core's SplitSigmas at the first level below it. ValueError where one of them would have nothing to do.
    """
    cut = int((sigmas[:-1] >= boundary).sum())
    if not 0 < cut < len(sigmas) - 1:
        idle = "high" if cut == 0 else "low"
        raise ValueError(
            f"at these noise levels, {turbo_text.listed(sigmas)}, the {idle}-noise model has nothing to do: it takes over at sigma {boundary:g}. "
            "Change steps or denoise, or sample the other model alone with Turbo Sampling."
        )
    return sigmas[: cut + 1], sigmas[cut:]


def check_base(model, profile):
    """ValueError where the MODEL is of another base, or set to predict something else, than the profile is for."""
    refuse(problems(profile, base=bases_of(model)))
    if not bases_of(model) and class_of(model) not in BASES[profile.base].core and not carries(model, profile):
        raise ValueError(
            f"{profile.title} is for {BASES[profile.base].title}, and model is {title_of(model)}. Load the model that the profile is for, or "
            "choose another profile."
        )
    prediction, wanted = prediction_of(model), profile.prediction
    if prediction != wanted and (prediction, wanted) != ("eps", "x0"):
        raise ValueError(
            f"{profile.title} predicts {wanted}, and model is set to predict {prediction}. Load the model that the profile is for, or take "
            "out the node that sets what is predicted (ModelSamplingDiscrete and the like)."
        )


def problems_of(model, profile, sampler=None, sigmas=None, cfg=None, negative=None):
    """What contradicts the profile, as ``check.problems`` has it. What is None is not looked at.

    Of noise levels, whether a student that knows "listed" ones knows these, unless they go by the size; of steps, whether a whole
    run has as many as are offered. A part of a run, of one network of two or below denoise 1, may have fewer. SIGMAS of less than
    one step, as of core's BasicScheduler at denoise 0, are no run.
    """
    known, steps, unread = None, None, []
    if sigmas is not None and len(sigmas) < 2:
        sigmas = None
    if sigmas is not None:
        runs, unread = expected_runs(model, profile)
        offered = sorted({sigma for run in runs for sigma in run.tolist()}, reverse=True)
        noisiest = offered[0] if offered else float(model.get_model_object("model_sampling").sigma_max)
        known = offered if offered and profile.trained == "listed" else None
        is_whole = sigmas[-1] == 0 and sigmas[0] >= (1 - SAME_LEVEL) * noisiest
        steps = len(sigmas) - 1 if is_whole else None
    found = problems(
        profile, steps=steps, cfg=cfg, shift=shift_of(model), sigmas=sigmas, sampler=sampler and sampler_name(sampler),
        base=bases_of(model), prediction=prediction_of(model), negative=negative, expected=known,
    )  # fmt: skip
    return found + unread + lora_problems(model, profile)


def expected_runs(model, profile):
    """(SIGMAS of each number of steps, none where they go by the size; a Problem in a list where the MODEL's cannot be told)."""
    if isinstance(profile.shift, Shift):
        return [], []
    try:
        return [levels(model, profile, count) for count in profile.steps], []
    except ValueError as reason:
        return [], [Problem("warning", "The noise levels cannot be looked at:", str(reason))]


def lora_problems(model, profile):
    """A warning where the profile is of a LoRA and the MODEL has none."""
    if profile.form != "lora" or model.patches or carried(model) is not None:
        return []
    return [
        Problem(
            "warning", f"{profile.title} is a LoRA, and the model has none applied.",
            "Apply it with Load Turbo LoRA, unless the checkpoint has it merged in.",
        )
    ]  # fmt: skip


def refuse(found):
    """ValueError with all problems that make noise, if there are any."""
    errors = [f"{problem.text} {problem.remedy}" for problem in found if problem.severity == "error"]
    if errors:
        raise ValueError("\n".join(errors))


def offered_for(model):
    """The keys of PROFILES for a MODEL's base."""
    bases = bases_of(model)
    return [key for key, profile in PROFILES.items() if profile.base in bases]


def _asked_for(model, key):
    profile = PROFILES[key]
    if carries(model, profile):
        return profile, carried(model).steps, f"chosen, and {carried(model).why}"
    steps = next((steps for found, steps, _ in _by_name(model) if found == key), None)
    return profile, steps, "chosen"


def _found(model):
    mark = carried(model)
    if mark is not None:
        return mark.profile, mark.steps, mark.why
    by_name = [entry for entry in _by_name(model) if entry[0] in offered_for(model)]
    if len({key for key, _, _ in by_name}) == 1:
        key, steps, why = by_name[0]
        return PROFILES[key], steps, why
    by_class = [key for key in offered_for(model) if PROFILES[key].base in DECIDED]
    if len(by_class) == 1 and not is_dedistilled(file_of(model)):
        return PROFILES[by_class[0]], None, f"every {title_of(model)} is distilled"
    raise ValueError(_cannot_tell(model))


def _by_name(model):
    name = file_of(model)
    found = candidates({}, {}, name) if name else []
    return [entry for entry in found if PROFILES[entry[0]].form != "lora"]


def _in_steps(choice):
    return f"{choice.profile.title} in {turbo_text.steps(choice.steps)}"


def _cannot_tell(model):
    name, offered = file_of(model), offered_for(model)
    seen = f"its file is {name}" if name else "what file it is from is not known"
    remedy = f"choose one of those for it: {', '.join(offered)}" if offered else "no profile is for it"
    return (
        f"profile is auto, and nothing says how this MODEL, {title_of(model)}, is to be sampled: no Load Turbo LoRA came before, and "
        f"{seen}. If it is distilled, {remedy}; if it is not, use KSampler."
    )
