"""Nodes that output SAMPLER: one per family of solvers."""

from comfy_api.latest import io

from ..samplers.solvers import SOLVERS
from . import host
from .inputs import chosen, family, method_input


class SamplerFamily(io.ComfyNode):
    """What the sampler nodes share: a choice among the solvers of ``FAMILY``, each with its knobs."""

    FAMILY = NODE_ID = DISPLAY_NAME = DESCRIPTION = None
    ALIASES = ()

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=cls.NODE_ID,
            display_name=cls.DISPLAY_NAME,
            category="distillery/samplers",
            description=cls.DESCRIPTION,
            search_aliases=list(cls.ALIASES),
            inputs=[method_input(family(SOLVERS, cls.FAMILY))],
            outputs=[
                io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced."),
                io.String.Output(
                    "info", display_name="info",
                    tooltip="Order, evaluations per step, noise, source and use of the chosen method.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, method) -> io.NodeOutput:
        solver, settings = chosen(method, SOLVERS)
        return io.NodeOutput(host.as_sampler(solver, settings), solver.describe(**settings))


class MomentumSampler(SamplerFamily):
    FAMILY = "momentum"
    NODE_ID = "Distillery_SamplerMomentum"
    DISPLAY_NAME = "Momentum Sampler (GHVB, heavy ball, Nesterov)"
    DESCRIPTION = "Multistep sampling that stays calm at few steps and high CFG. One model evaluation per step."
    ALIASES = ("ghvb", "heavy ball", "nesterov", "plms", "sampler")


class ConjugateSampler(SamplerFamily):
    FAMILY = "conjugate"
    NODE_ID = "Distillery_SamplerConjugate"
    DISPLAY_NAME = "Conjugate Sampler (Lambda-DDIM)"
    DESCRIPTION = "DDIM with a change of variable that can be tuned to a model. One model evaluation per step."
    ALIASES = ("lambda-ddim", "ddim", "conjugate integrator", "sampler")


NODES = [MomentumSampler, ConjugateSampler]
