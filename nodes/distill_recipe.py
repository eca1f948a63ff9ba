"""The Recipe node: every setting of a run of training, typed."""

import json

from comfy_api.latest import io

from ..distill.laws import LAWS
from ..distill.objectives import OBJECTIVES
from ..distill.recipe import Recipe
from ..distill.settings import SECTIONS
from .inputs import chosen, knob_input, method_input

RecipeType = io.Custom("DISTILLERY_RECIPE")
USUAL, OWN = "usual", "own"
MEANINGS = {
    "data": "The latents that the teacher makes to learn from.",
    "lora": "Which layers are changed, and how richly.",
    "optimiser": "What turns gradients into steps.",
    "run": "How long, and how much at once. The seed is Distill's.",
    "profile": "What the student is to be sampled with, where the objective leaves it open.",
}
ELSEWHERE = {("run", "seed")}  # an input of Distill


def section_input(section):
    """A choice between the usual settings of a part and one's own, which then show beneath."""
    knobs = [knob_input(knob) for knob in SECTIONS[section] if (section, knob.name) not in ELSEWHERE]
    options = [io.DynamicCombo.Option(USUAL, []), io.DynamicCombo.Option(OWN, knobs)]
    return io.DynamicCombo.Input(section, options=options, tooltip=f"{MEANINGS[section]} Neutral: {USUAL}.")


class RecipeNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Distillery_Recipe",
            display_name="Recipe",
            category="distillery/distillation",
            description="How to train: objective, noise levels, data, LoRA, optimiser. For Distill, in place of its goal.",
            search_aliases=["distillation settings", "training settings", "lcm", "reflow", "progressive distillation", "optimizer"],
            inputs=[method_input(OBJECTIVES, name="objective"), method_input(LAWS, name="law"), *map(section_input, SECTIONS)],
            outputs=[
                RecipeType.Output("recipe", display_name="recipe", tooltip="For Distill or Export Run."),
                io.String.Output("json", display_name="json", tooltip="The same as JSON, as recipe.json in a run's folder has it."),
            ],
        )

    @classmethod
    def execute(cls, objective, law, data, lora, optimiser, run, profile) -> io.NodeOutput:
        _, knobs = chosen(objective, OBJECTIVES, "objective")
        _, law_knobs = chosen(law, LAWS, "law")
        parts = {"data": data, "lora": lora, "optimiser": optimiser, "run": run, "profile": profile}
        sections = {name: {key: value for key, value in part.items() if key != name} for name, part in parts.items()}
        recipe = Recipe(objective["objective"], knobs, law["law"], law_knobs, **sections)
        return io.NodeOutput(recipe, json.dumps(recipe.to_json(), indent=1))


NODES = [RecipeNode]
