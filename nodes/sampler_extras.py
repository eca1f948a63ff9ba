"""SAMPLER nodes of families that take more than knobs."""

import json
from dataclasses import asdict, replace
from functools import partial

from comfy_api.latest import io

from ..samplers.solvers import SOLVERS
from ..samplers.solvers.per_step import KNOBS, Rule
from . import host
from .inputs import chosen, knob_input
from .samplers import SamplerFamily

Recipe = io.Custom("DISTILLERY_RECIPE")


class ShortcutSampler(SamplerFamily):
    FAMILY = "shortcut"
    NODE_ID = "Distillery_SamplerShortcut"
    DISPLAY_NAME = "Shortcut Sampler (Gaussian teleport, Time-Shift)"
    DESCRIPTION = "Skips the first steps by a formula, or moves each step to the noise level that the latent really has."
    ALIASES = ("gaussian teleport", "skip steps", "time shift", "exposure bias", "sampler")

    @classmethod
    def define_schema(cls):
        schema = super().define_schema()
        schema.inputs += [
            io.Latent.Input(
                "samples", optional=True,
                tooltip="For gaussian_teleport: 2 to 64 finished latents of this model and size, best of the same prompt, whose "
                "mean and spread the formula uses. Neutral: none, then a mean of 0 and std.",
            ),
            io.Sampler.Input(
                "sampler", optional=True,
                tooltip="For gaussian_teleport: what samples the steps that remain. Neutral: none, then Euler.",
            ),
        ]  # fmt: skip
        return schema

    @classmethod
    def execute(cls, method, samples=None, sampler=None) -> io.NodeOutput:
        solver, settings = chosen(method, SOLVERS)
        unused = [name for name, given in (("samples", samples), ("sampler", sampler)) if given is not None]
        if unused and method["method"] != "gaussian_teleport":
            raise ValueError(f"{unused[0]} is connected, which {method['method']} cannot use: disconnect it.")
        extras = {} if sampler is None else {"then": host.function_of(sampler)}

        def at_start(model):
            return extras if samples is None else {**extras, "samples": host.as_sampled(model, samples)}

        return io.NodeOutput(host.as_sampler(solver, settings, at_start if unused else None), solver.describe(**settings))


class StepRule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_StepRule",
            display_name="Step Rule",
            category="distillery/samplers",
            description="How some of the next steps are to be sampled: one part of a recipe for the Per-Step Sampler.",
            search_aliases=["recipe", "usf", "per step", "solver schedule"],
            inputs=[
                io.Int.Input("steps", default=4, min=1, max=1000, tooltip="To how many steps this rule applies."),
                *map(knob_input, KNOBS),
                Recipe.Input(
                    "recipe", optional=True, tooltip="What comes before: the steps of another Step Rule. Neutral: none, the start."
                ),
            ],
            outputs=[Recipe.Output("recipe", display_name="recipe", tooltip="All parts so far.")],
        )

    @classmethod
    def execute(cls, steps, prediction, order, corrector, weights, recipe=()) -> io.NodeOutput:
        return io.NodeOutput((*recipe, *[Rule(prediction, order, corrector, weights)] * steps))


class PerStepSampler(SamplerFamily):
    FAMILY = "per_step"
    NODE_ID = "Distillery_SamplerPerStep"
    DISPLAY_NAME = "Per-Step Sampler (USF)"
    DESCRIPTION = "One family that holds Euler, ipndm, DPM-Solver and UniPC, and may change from step to step."
    ALIASES = ("usf", "solver schedule", "recipe", "dpmpp_2m", "unipc", "ipndm", "sampler")

    @classmethod
    def define_schema(cls):
        schema = super().define_schema()
        schema.inputs.append(
            Recipe.Input(
                "recipe", optional=True,
                tooltip="Rules for the first steps, from Step Rule; the settings here are for all others. Neutral: none.",
            )
        )  # fmt: skip
        return schema

    @classmethod
    def execute(cls, method, recipe=()) -> io.NodeOutput:
        solver, settings = chosen(method, SOLVERS)
        Rule(**settings)  # refuses what does not go together
        bound = replace(solver, sample=partial(solver.sample, recipe=recipe))
        rules = json.dumps([asdict(rule) for rule in recipe])
        info = solver.describe(**settings) + (f"\nFirst steps: {rules}" if recipe else "")
        return io.NodeOutput(host.as_sampler(bound, settings), info)


NODES = [ShortcutSampler, StepRule, PerStepSampler]
