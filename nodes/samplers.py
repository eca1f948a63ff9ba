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


class AutoSampler(SamplerFamily):
    FAMILY = "auto"
    NODE_ID = "Distillery_SamplerAuto"
    DISPLAY_NAME = "Auto Sampler"
    DESCRIPTION = "The sampler to try first: what measured best for the number of steps and the kind of model."
    ALIASES = ("default", "best", "recommended", "sampler")


class MomentumSampler(SamplerFamily):
    FAMILY = "momentum"
    NODE_ID = "Distillery_SamplerMomentum"
    DISPLAY_NAME = "Momentum Sampler (GHVB, Nesterov, gradient estimation)"
    DESCRIPTION = "Multistep sampling that damps or sharpens by its last slopes. One model evaluation per step."
    ALIASES = ("ghvb", "heavy ball", "nesterov", "plms", "gradient estimation", "sampler")


class ConjugateSampler(SamplerFamily):
    FAMILY = "conjugate"
    NODE_ID = "Distillery_SamplerConjugate"
    DISPLAY_NAME = "Conjugate Sampler (Lambda-DDIM)"
    DESCRIPTION = "DDIM with a change of variable that can be tuned to a model. One model evaluation per step."
    ALIASES = ("lambda-ddim", "ddim", "conjugate integrator", "sampler")


class InvertibleSampler(SamplerFamily):
    FAMILY = "invertible"
    NODE_ID = "Distillery_SamplerInvertible"
    DISPLAY_NAME = "Invertible Sampler (BDIA, EDICT)"
    DESCRIPTION = "Sampling whose every step can be undone exactly: connect it to Invert to edit a picture."
    ALIASES = ("bdia", "edict", "inversion", "unsampler", "editing", "sampler")


class ExponentialSampler(SamplerFamily):
    FAMILY = "exponential"
    NODE_ID = "Distillery_SamplerExponential"
    DISPLAY_NAME = "Exponential Sampler (DPM-Solver, DEIS, UniPC, RES)"
    DESCRIPTION = "Exponential integrators with a choice of order and form, with or without history, on every kind of model."
    ALIASES = ("dpm-solver", "dpm++", "dpmpp", "deis", "unipc", "res", "exponential integrator", "sampler")


class ParallelSampler(SamplerFamily):
    FAMILY = "parallel"
    NODE_ID = "Distillery_SamplerParallel"
    DISPLAY_NAME = "Parallel Sampler (ParaDiGMS)"
    DESCRIPTION = "Euler's picture in fewer rounds: works on many steps at once, as one larger batch."
    ALIASES = ("paradigms", "picard", "parallel sampling", "latency", "sampler")


class StochasticSampler(SamplerFamily):
    FAMILY = "stochastic"
    NODE_ID = "Distillery_SamplerStochastic"
    DISPLAY_NAME = "Stochastic Sampler (SA-Solver, EDM, Restart, ...)"
    DESCRIPTION = "Sampling that renews part of the noise on its way, which corrects errors made so far. Exact on flow models too."
    ALIASES = ("sa-solver", "edm", "churn", "restart", "langevin", "sde", "ancestral", "ctm", "tcd", "lcm", "sampler")


class TurboSampler(SamplerFamily):
    FAMILY = "turbo"
    NODE_ID = "Distillery_SamplerTurbo"
    DISPLAY_NAME = "Few-step Sampler (TCD, PCM, SCM, ping-pong)"
    DESCRIPTION = "The samplers that distilled models were made for, equal to their own pipelines step by step."
    ALIASES = (
        "tcd", "pcm", "scm", "trigflow", "ping-pong", "pingpong", "lcm", "turbo", "lightning", "hyper-sd", "dmd2", "add", "ladd",
        "sana-sprint", "rcm", "consistency", "one step", "sampler",
    )  # fmt: skip


NODES = [
    AutoSampler, MomentumSampler, ConjugateSampler, InvertibleSampler, ExponentialSampler, ParallelSampler, StochasticSampler,
    TurboSampler,
]  # fmt: skip
