"""Nodes that output SIGMAS or NOISE: where sampling starts and which noise levels it visits."""

from comfy_api.latest import io

from ..samplers import noise
from ..samplers.schedules import SCHEDULES
from . import host
from .inputs import chosen, method_input


class Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Schedule",
            display_name="Schedule",
            category="distillery/schedules",
            description="Noise levels for any eps, v, EDM or flow model.",
            search_aliases=[
                "scheduler", "sigmas", "uniform lambda", "log snr", "karras", "edm", "cosine", "sigmoid", "trailing", "leading",
                "linspace", "timesteps", "lcm", "tcd", "scm", "trigflow", "shift", "mu", "resolution",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled: its noise range and prediction type are used."),
                method_input(SCHEDULES),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Number of steps."),
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01,
                    tooltip="Share of the schedule to run, from its end. 1 = all of it; less keeps more of the input latent.",
                ),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="The latent to be sampled, for the methods that go by its size: dynamic_shift and sd3_shift.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="steps + 1 falling noise levels, the last 0.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, method, steps, denoise, latent=None) -> io.NodeOutput:
        schedule, settings = chosen(method, SCHEDULES)
        return io.NodeOutput(host.sigmas_for(model, schedule, steps, denoise, settings, latent))


class ItemNoise:
    """NOISE whose item i is the noise of a single run with seed + i; a latent's ``batch_index`` picks other i."""

    def __init__(self, seed):
        self.seed = seed

    def generate_noise(self, latent):
        samples = latent["samples"]
        if samples.is_nested:
            raise ValueError("latent holds several latents (video with audio), which have no noise per item: use RandomNoise.")
        indices = latent.get("batch_index", range(len(samples)))
        seeds = noise.item_seeds(self.seed, max(indices) + 1)
        return noise.initial(samples.shape, [seeds[i] for i in indices])


class NoisePerItem(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_NoisePerItem",
            display_name="Noise per Item",
            category="distillery/schedules",
            description="Seeds each item of a batch by itself: item i is the picture that seed + i gives alone.",
            search_aliases=["batch seed", "random noise", "reproducible batch"],
            inputs=[
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Seed of the first item; the next has seed + 1, and so on.",
                ),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, seed) -> io.NodeOutput:
        return io.NodeOutput(ItemNoise(seed))


NODES = [Schedule, NoisePerItem]
