"""The node that leaves out tokens."""

from comfy_api.latest import io

from ..samplers.pruning import KNOBS
from .guidance import outputs, reported
from .host_pruning import with_pruning
from .inputs import knob_input


class TokenPruning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_TokenPruning",
            display_name="Token Pruning",
            category="distillery/caching",
            description="Leaves out tokens that matter little and fills their places from the most similar ones (AT-EDM). For large "
            "pictures; small ones gain nothing.",
            search_aliases=["at-edm", "token pruning", "token merging", "tome", "tomesd", "attention", "speed"],
            not_idempotent=True,
            is_experimental=True,
            inputs=[
                io.Model.Input("model", tooltip="A UNet (Stable Diffusion 1, 2, XL) or a transformer such as Flux, SD3, Qwen, Wan, Z-Image."),
                *map(knob_input, KNOBS),
            ],
            outputs=outputs("The same model, whose blocks compute for fewer tokens."),
        )  # fmt: skip

    @classmethod
    def execute(cls, model, share, ranking, early, renew, iterations, keys) -> io.NodeOutput:
        settings = {"share": share, "ranking": ranking, "early": early, "renew": renew, "iterations": iterations, "keys": keys}
        return reported(with_pruning(model, settings))


NODES = [TokenPruning]
