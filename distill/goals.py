"""What users want, and the recipe for it."""

from dataclasses import dataclass, replace

from .recipe import Recipe

QUALITY = {"draft": 0.25, "normal": 1.0, "high": 3.0}  # of the steps


@dataclass(frozen=True)
class Goal:
    title: str
    good_for: str
    recipe: Recipe


def _phased(steps, substeps, train_for):
    return Recipe(
        "phased", {"phases": steps, "substeps": substeps}, data={"count": 64 * steps}, run={"steps": train_for},
    )  # fmt: skip


def _reflow(steps, at_start, train_for):
    return Recipe(
        "reflow", {"at_start": at_start}, data={"count": 1024, "teacher_steps": 25}, run={"steps": train_for},
        profile={"steps": steps},
    )  # fmt: skip


GOALS = {
    "guidance_free": Goal(
        "Guidance-free", "half the time at the same number of steps", Recipe("guidance", law="uniform", run={"steps": 600})
    ),
    "8_steps": Goal("8 steps", "nearly the teacher's quality", _phased(8, 4, 1500)),
    "4_steps": Goal("4 steps", "the usual choice", _phased(4, 8, 2000)),
    "2_steps": Goal("2 steps", "previews; softer", _reflow(2, 0.4, 3000)),
    "1_step": Goal("1 step", "the fastest there is; soft", _reflow(1, 0.75, 4000)),
}


def recipe_for(goal, quality="normal", scale=None, **run):
    """The Recipe of a goal. scale: the teacher's guidance, the recipe's own unless given. run: settings of its run to change.

    ValueError for an unknown goal, quality or setting.
    """
    for name, value, known in (("goal", goal, GOALS), ("quality", quality, QUALITY)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(known)}.")
    recipe = GOALS[goal].recipe
    steps = max(1, round(recipe.run["steps"] * QUALITY[quality]))
    changes = {"run": {**recipe.run, "steps": steps, **run}}
    if scale is not None:
        changes["data"] = {**recipe.data, "teacher_scale": scale}
        if "scale" in recipe.knobs:
            changes["knobs"] = {**recipe.knobs, "scale": scale}
    return replace(recipe, **changes)
