"""Guidance rules as an ordered chain on a MODEL: how they meet ComfyUI's predictions.

A skipping rule fills in an unconditional prediction where core would evaluate it, in a wrapper of CALC_COND_BATCH, so that guiders,
pre-CFG functions and whatever replaced the CFG function work with it as with any other. A shaping rule stands first among the
post-CFG functions and changes what the CFG step made. All links of a chain share one wrapper of each kind.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP

from ..samplers.core import append_dims, complete, takes
from ..samplers.guidance import Rule, smart
from ..samplers.guidance.chain import guide
from ..samplers.guidance.contrast import Contrast
from ..samplers.guidance.moment import Moment
from ..samplers.guidance.skipping.skip import Skip
from .host import RUNS, is_plain_cfg, path_of, recorders, run_state, solver_of, window_of, with_run_state
from .host_branches import Branch, Contrasts
from .host_prompts import active, roles_of

CHAIN = "distillery_guidance"  # in transformer_options: the links in graph order


@dataclass(frozen=True)
class Link:
    rule: Rule | Skip
    settings: dict


def with_rule(model, rule, settings):
    """A clone of ``model`` that follows ``rule`` after the rules it has already. At neutral settings nothing is hooked."""
    settings = complete(rule.knobs, settings)
    if isinstance(rule, Skip):
        rule.check(settings)
    return model.clone() if rule.is_neutral(settings) else with_link(model, Link(rule, settings))


@dataclass(frozen=True)
class SmartLink:
    """Stands for the links that measured best; known when a run says how many steps it has. scale takes the place of the sampler's."""

    scale: float
    saving: str

    def chosen(self, path, steps, latent):
        """latent: the run's, (B, ...)."""
        found = smart.choice(path, steps, self.scale, self.saving, latent[0].numel())
        return [Link(rule, complete(rule.knobs, knobs)) for rule, knobs in found]


def with_smart(model, scale, saving):
    """A clone guided at ``scale`` by what measured best on this kind of model; saving is a key of ``smart.SAVINGS``."""
    path_of(model.get_model_object("model_sampling"))  # says so now if the kind is not known
    if any(isinstance(link, SmartLink) for link in model.model_options["transformer_options"].get(CHAIN, ())):
        raise ValueError("model already has Smart Guidance, and a run has one scale: remove one of the two nodes.")
    return with_link(model, SmartLink(scale, saving))


def check_scale(name, scale, rule):
    """ValueError for a scale below 1 with a rule that skips."""
    if scale < 1:
        raise ValueError(
            f"{name} is {scale:g}: {rule.title} skips the negative prompt where it hardly matters, and below 1 guidance points the "
            "other way. Raise it, or remove the node that skips."
        )


def no_place(guiding, rule):
    """The ValueError for a guider's class, or a node's function, that never brings the positive and another prompt together."""
    name = getattr(guiding, "__qualname__", type(guiding).__name__)
    return ValueError(
        f"{name} guides by a way of its own, in which {rule.title} finds no place. Use CFGGuider or KSampler, or remove one of the two."
    )


def with_link(model, link):
    links = model.model_options["transformer_options"].get(CHAIN, ())
    if links:
        model = model.clone()
    else:
        model, _ = with_run_state(model, Run, Run.end, token=CHAIN)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, CHAIN, predict_noise)
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, CHAIN, calc_cond_batch)
    model.model_options["transformer_options"][CHAIN] = (*links, link)
    return model


def predict_noise(executor, x, timestep, model_options, seed):
    return run_state(model_options["transformer_options"], CHAIN).predict(executor, x, timestep, model_options, seed)


def calc_cond_batch(executor, model, conds, x, timestep, model_options):
    run = model_options["transformer_options"].get(RUNS, {}).get(CHAIN)
    evaluate = executor if run is None else run.evaluator(executor, conds, model_options)
    return evaluate(model, conds, x, timestep, model_options)


class Run:
    """The chain at work in one sampling run."""

    def __init__(self, run):
        self.guider, self.sigmas = run["guider"], run["sigmas"].tolist()
        options = self.guider.model_options
        self.sampling = self.guider.model_patcher.get_model_object("model_sampling")
        links, self.target = [], None
        for link in options["transformer_options"][CHAIN]:
            if isinstance(link, SmartLink):
                self.target = link.scale
                links += link.chosen(path_of(self.sampling), len(self.sigmas) - 1, run["noise"])
            else:
                links.append(link)
        self.skips = [link for link in links if isinstance(link.rule, Skip)]
        self.shaping = [(link.rule, link.settings, link.rule.new_state(link.settings)) for link in links if isinstance(link.rule, Rule)]
        self.contrasts = [(link, link.others(run)) for link in links if isinstance(link.rule, Contrast)]
        self.path = self.known_path(needed=any(takes(rule.rule, "at") for rule, _, _ in self.shaping))
        shapes = run["latent_shapes"]
        self.shapes = tuple(map(tuple, shapes)) if shapes is not None and len(shapes) > 1 else None
        self.skippers = {}  # for each branch and each set of prompts: one for each of ``skips``
        self.evaluated = set()  # the context windows of the present prediction
        self.reached = self.shaped = False
        self.scale = None  # the guider's at the present prediction: nodes may change it for a while
        self.check(run["sampler"])
        options["sampler_post_cfg_function"] = [self.post_cfg, *options.get("sampler_post_cfg_function", [])]

    def check(self, sampler):
        for name in ("cfg", "cfg1", "cfg2") if self.target is None else ():
            for link in self.skips:
                check_scale(name, getattr(self.guider, name, 1), link.rule)
        solver, _ = solver_of(sampler)
        remembers = [rule.title for rule, _, state in self.shaping if state is not None or takes(rule.rule, "at")]
        remembers += [link.rule.title for link in self.skips] + [link.rule.title for link, _ in self.contrasts]
        if solver is not None and solver.mixes_sigmas and remembers:
            raise ValueError(
                f"sampler runs several steps at once, which {remembers[0]} cannot follow, as it goes from step to step. Use another "
                "sampler, or remove that node."
            )
        if self.target is not None and not (is_plain_cfg(self.guider) and "negative" in self.guider.conds):
            raise ValueError(
                f"{type(self.guider).__name__} has no one CFG scale between a positive and a negative prompt for Smart Guidance "
                "to set: use CFGGuider or KSampler, or Adaptive Guidance in its place."
            )
        if self.contrasts and not is_plain_cfg(self.guider):
            raise ValueError(
                f"{type(self.guider).__name__} mixes several prompts by a rule of its own, beside which {self.contrasts[0][0].rule.title} "
                "has no meaning. Use CFGGuider or KSampler, or remove that node."
            )

    def known_path(self, needed):
        try:
            return path_of(self.sampling)
        except ValueError:
            if needed:
                raise
            return None

    def end(self, completed):
        for _, other in self.contrasts:
            other.end()

    def moment(self, x, timestep):
        sigma = float(timestep[0])
        step = max(sum(level >= sigma * (1 - 1e-6) for level in self.sigmas) - 1, 0)
        return Moment(x, timestep, step, len(self.sigmas) - 1, self.path, self.shapes)

    def predict(self, executor, x, timestep, model_options, seed):
        self.evaluated.clear()
        self.scale = None
        with self.at_scale():
            denoised = executor(x, timestep, model_options, seed)
        if self.scale not in (None, 1):
            if self.skips and not self.reached:
                raise no_place(type(self.guider), self.skips[0].rule)
            if self.shaping and not self.shaped:
                raise no_place(type(self.guider), self.shaping[0][0])
        return denoised

    @contextmanager
    def at_scale(self):
        """The guider at Smart Guidance's scale, if there is one; as CFGOverride does it, so that one of those may follow."""
        before = self.guider.cfg
        if self.target is not None:
            self.guider.cfg = self.target
        try:
            yield
        finally:
            self.guider.cfg = before

    # Skipping

    def evaluator(self, executor, conds, model_options):
        """What answers a call of CALC_COND_BATCH: of each prediction the one with the positive prompt and others, as the CFG step
        needs it. Further ones are by nodes with purposes of their own, such as perturbed attention.
        """
        window = window_of(model_options["transformer_options"])
        roles = roles_of(conds, self.guider.conds)
        self.scale = self.guider.cfg
        for link in self.skips:
            check_scale("cfg", self.scale, link.rule)
        replaces = [link.rule for link in (*self.skips, *(link for link, _ in self.contrasts))]
        if replaces and "positive" not in roles and len(conds) > 1 and any(roles):
            raise no_place(model_options.get("sampler_calc_cond_batch_function", type(self.guider)), replaces[0])
        if "positive" not in roles or len(conds) < 2 or window in self.evaluated:
            return executor
        self.evaluated.add(window)
        self.reached = True
        if not (self.skips or self.contrasts):
            return executor
        for link, other in self.contrasts:
            if window is not None and not other.fits_windows:
                raise ValueError(f"model samples in context windows, which {link.rule.title} cannot follow: remove one of the two.")
        return lambda *args: self.evaluate(executor, roles, window, *args)

    def evaluate(self, executor, roles, window, model, conds, x, timestep, model_options):
        moment, positive = self.moment(x, timestep), roles.index("positive")
        prompts = active(conds[positive], timestep)
        branches = []
        for number, role in enumerate(roles):
            others = active(conds[number] or [], timestep)
            if number != positive and (others or self.contrasts and conds[number]):  # else core evaluates nothing
                skippers = self.skippers_for((window, role, prompts, others))
                branches.append(Branch(number, skippers, moment, conds[number], model_options, divisible=not self.contrasts))
        batched = list(conds)
        for branch in branches:
            if not branch.whole:
                batched[branch.number] = None
        records = recorders(model_options["transformer_options"])
        contrasting = self.contrasts and self.guider.cfg != 1 and any(branch.whole for branch in branches)
        contrasts = Contrasts(self.contrasts, moment.step, timestep) if contrasting else None
        if contrasts:
            batched = contrasts.joining(batched)
            for recorder in records:
                recorder.branches = contrasts.names
        out = list(executor(model, batched, x, timestep, model_options))
        if contrasts:
            call = (executor, model, conds[positive], x, timestep, model_options)
            out[1] = contrasts.uncond(out, self.guider.cfg, call, records)
        for branch in branches:
            if branch.rows is not None:
                alone = [branch.rows if i == branch.number else None for i in range(len(conds))]
                items = torch.tensor(branch.items, device=x.device)
                some = executor(model, alone, x[items], timestep[items], model_options)[branch.number]
                out[branch.number] = out[branch.number].index_copy(0, items, some)
            out[branch.number] = branch.finish(moment, out[positive], out[branch.number])
            for recorder in records:
                recorder.note(branch.number, **branch.note)
        return out[: len(conds)]

    def skippers_for(self, key):
        if key not in self.skippers:
            to_sigma = self.sampling.percent_to_sigma
            self.skippers[key] = [link.rule.begin(link.settings, to_sigma) for link in self.skips]
        return self.skippers[key]

    # Shaping

    def post_cfg(self, args):
        """The CFG step's result, changed. First of its list, so that it sees that step's own result."""
        self.shaped = True
        denoised, cond, uncond, scale = (args[key] for key in ("denoised", "cond_denoised", "uncond_denoised", "cond_scale"))
        empty = args.get("empty_cond_denoised")
        if empty is not None and self.skips:  # where perpendicular guidance was left nothing to divide by
            same = append_dims((cond == empty).flatten(1).all(1), cond)
            denoised = torch.where(same, cond, denoised)
        if not self.shaping or (args["uncond"] is None and empty is None):  # CFG 1: there is nothing to guide with
            return denoised
        own = empty is not None or "sampler_cfg_function" in args["model_options"]
        at = self.moment(args["input"], args["sigma"])
        return guide(self.shaping, cond, uncond, scale, at, denoised if own else None)
