"""Recipes, goals and the cache of pairs: data that says what is wrong with it."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from comfyui_distillery.distill.batch import Cycle, Data
from comfyui_distillery.distill.geometry import start
from comfyui_distillery.distill.goals import GOALS, QUALITY, recipe_for
from comfyui_distillery.distill.objectives import OBJECTIVES
from comfyui_distillery.distill.pairs import Pairs, fill
from comfyui_distillery.distill.recipe import Recipe
from comfyui_distillery.distill.settings import SECTIONS
from comfyui_distillery.distill.train import Training

from .distilling import LEVELS, Affine, Conds, Plain, two_gaussians
from .problems import assert_close, number

every_levels = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


# Recipes


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_recipe_is_its_json(name, tmp_path):
    recipe = Recipe(name, law="logit_normal", law_knobs={"mean": 0.5}, run={"steps": 7})
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["run"]["batch"] == 4 and written["law_knobs"] == {"mean": 0.5, "std": 1.0}  # defaults are written out
    for section, knobs in SECTIONS.items():
        assert written[section].keys() == {knob.name for knob in knobs}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"objective": "magic"}, "objective is 'magic': it must be one of guidance, phased"),
        ({"law": "normal"}, "law is 'normal': it must be one of uniform"),
        ({"knobs": {"phases": 0}}, "knobs: phases is 0: it must be a whole number from 1 to 64"),
        ({"knobs": {"phase": 4}}, "knobs: unknown setting phase=4: there is phases"),
        ({"optimiser": {"name": "sgd"}}, "optimiser: name is 'sgd': it must be one of adamw, lion"),
        ({"optimiser": {"lr": -1.0}}, "optimiser: lr is -1.0"),
        ({"run": {"batch": 2.5}}, "run: batch is 2.5: it must be a whole number"),
        ({"run": {"batch": 4, "micro_batch": 8}}, "run.micro_batch is 8, more than run.batch, 4: lower it"),
        ({"data": {"perturbation": 0.1}}, "data.perturbation is 0.1, .*set it to 0"),
        ({"objective": "reflow", "data": {"immiscible": 4}}, "data.immiscible is 4, .*set it to 1"),
        ({"profile": {"steps": 6}}, "profile.steps is 6, and the objective teaches 4: set it to 0"),
        ({"objective": "consistency", "knobs": {"first": 50}}, "knobs.first is 50, more than last, 40.*Lower first"),
        ({"objective": "progressive", "knobs": {"first": 2}}, "knobs.first is 2, fewer than last, 4.*Raise first"),
        ({"objective": "consistency", "knobs": {"toward": "average"}, "optimiser": {"ema": 0.0}}, "toward is 'average' and optimiser.ema is 0"),
        ({"lora": {"targets": "some"}}, "lora: targets is 'some': it must be one of attention"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**given)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "line 1 column 2"),
        ("[]", "not a recipe of version 1"),
        ('{"version": 2}', "not a recipe of version 1"),
        ('{"version": 1, "laws": "uniform"}', "has 'laws': there is objective, knobs, law"),
        ('{"version": 1, "run": 5}', "run is 5: it must be an object of settings"),
        ('{"version": 1, "objective": {}}', "objective is {}: it must be a name"),
        ('{"version": 1, "run": {"steps": true}}', "run: steps is True"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text, message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.json: .*{message}"):
        Recipe.load(path)


def test_what_may_change_is_not_part_of_the_identity():
    recipe = Recipe()
    for name, value in {"steps": 5, "minutes": 3.0, "micro_batch": 1, "save_every": 9}.items():
        assert replace(recipe, run={name: value}).identity() == recipe.identity()
    assert replace(recipe, run={"seed": 1}).identity() != recipe.identity()


@every_levels
@pytest.mark.parametrize("goal, steps", [("guidance_free", 20), ("8_steps", 8), ("4_steps", 4), ("2_steps", 2), ("1_step", 1)])
def test_a_goal_is_sampled_as_it_was_taught(goal, steps, levels):
    profile = GOALS[goal].recipe.sampled_by(levels)
    assert (profile.steps, profile.sampler, profile.cfg) == (steps, "euler", 1.0)
    assert profile.sigmas == tuple(levels.grid(steps).tolist())


def test_goals_scale_with_quality_and_take_the_teachers_guidance():
    assert {recipe_for("4_steps", quality).run["steps"] for quality in QUALITY} == {500, 2000, 6000}
    recipe = recipe_for("4_steps", scale=7.0, seed=5, minutes=2.0)
    assert recipe.knobs["scale"] == recipe.data["teacher_scale"] == 7.0
    assert (recipe.run["seed"], recipe.run["minutes"]) == (5, 2.0)
    assert recipe_for("1_step", scale=7.0).data["teacher_scale"] == 7.0
    with pytest.raises(ValueError, match="goal is '3_steps': it must be one of guidance_free, 8_steps"):
        recipe_for("3_steps")
    with pytest.raises(ValueError, match="quality is 'best'"):
        recipe_for("4_steps", "best")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_cost_of_an_objective_is_what_it_evaluates(name):
    """Forwards of the network, the one with gradients counted as 3."""
    levels = LEVELS["flow"]
    for knobs in ({}, {"solver": "heun"}, {"teacher": "none"}, {"scale": 1.0}):
        if not knobs.keys() <= {knob.name for knob in OBJECTIVES[name].knobs} or "scale" in knobs:
            continue
        student = Affine(levels.grid(4)[:4], (2, 3, 2))
        roles = Plain(levels.path, two_gaussians(levels.path), dict.fromkeys(("student", "ema", "previous"), student))
        source = Data(torch.zeros(4, 2, 3, 2), Conds([1] * 4), Conds([0]), levels, seed=0, size=4)
        recipe = Recipe(name, knobs)
        OBJECTIVES[name](roles, source.batch(0, [0, 1, 2, 3]), **recipe.knobs)
        spent = sum(3 if graded else 1 for _, _, graded in roles.calls)
        assert spent <= recipe.evaluations and spent >= 0.8 * recipe.evaluations


# Pairs


def make(folder, levels, count=10, kind=Plain, **options):
    data = two_gaussians(levels.path)
    roles = kind(levels.path, data, {})
    pairs = Pairs(folder, (2, 3, 2), 7, {"model": "toy", "scale": 3.0})
    fill(pairs, count, roles, Cycle(Conds([1, 0, 1]), 3), Conds([0]), levels, steps=200, scale=3.0, solver="heun", **options)
    return roles, pairs


@every_levels
def test_a_pair_is_a_noise_and_where_the_guided_teacher_takes_it(levels, tmp_path):
    roles, pairs = make(tmp_path, levels, 6)
    first = levels.sigma_max[None]
    noise = torch.stack([pairs.noise(i) for i in range(6)]).double()
    moved = roles.teachers[0].exact(start(levels.path, noise, first), first, 0 * first)
    plain = [i for i in range(6) if i % 3 == 1]  # conditions go round: 1, 0, 1; of number 0 guidance changes nothing
    assert_close(torch.stack([pairs[i] for i in plain]).double(), moved[plain], 2e-3)
    assert all((pairs[i] - moved[i]).abs().max() > 0.05 for i in range(6) if i % 3 != 1)


def test_pairs_go_on_where_they_were_left_and_batches_change_nothing(tmp_path):
    levels = LEVELS["flow"]
    _, whole = make(tmp_path / "whole", levels, batch=4)

    class Stop(BaseException):
        pass

    def stop(number, count):
        if number >= 6:
            raise Stop

    with pytest.raises(Stop):
        make(tmp_path / "parts", levels, batch=3, made=stop)
    (tmp_path / "parts" / "pairs-0000006.safetensors.part").write_bytes(b"half")
    seen = []
    _, parts = make(tmp_path / "parts", levels, batch=3, made=lambda number, count: seen.append((number, count)))
    assert seen == [(9, 10), (10, 10)] and len(parts) == len(whole) == 10
    assert torch.equal(parts.noise(9), whole.noise(9))
    for i in range(10):
        assert_close(parts[i], whole[i], 1e-3)  # a rounding to float16
    assert not make(tmp_path / "parts", levels)[0].calls  # all there


def test_pairs_of_something_else_are_refused_by_name(tmp_path):
    make(tmp_path, LEVELS["flow"], 2)
    with pytest.raises(ValueError, match="holds pairs begun differently .*scale: was 3.0, is 4.0"):
        Pairs(tmp_path, (2, 3, 2), 7, {"model": "toy", "scale": 4.0})
    with pytest.raises(ValueError, match=r"seed: was 7, is 8; shape: was \[2, 3, 2\], is \[2, 3, 3\]"):
        Pairs(tmp_path, (2, 3, 3), 8, {"model": "toy", "scale": 3.0})


def test_where_memory_runs_out_fewer_pairs_are_made_at_once(tmp_path):
    class Limited(Plain):
        def __call__(self, role, x, sigma, cond, strength=1.0):
            if len(x) > 2:
                raise torch.OutOfMemoryError
            return super().__call__(role, x, sigma, cond, strength)

    warnings = []
    _, pairs = make(tmp_path, LEVELS["flow"], 5, Limited, batch=8, warned=warnings.append)
    assert len(pairs) == 5 and warnings[-1].endswith("2 at once.") and len(warnings) == 2


def test_a_teacher_that_gives_no_numbers_is_named(tmp_path):
    with pytest.raises(ValueError, match="half precision cannot hold"):
        Pairs(tmp_path, (2,), 0, {}).append(number([[1.0, float("nan")]]))


def test_from_pairs_to_one_step(tmp_path):
    """The whole way: the teacher makes pairs, reflow trains on them, one Euler step lands where the teacher does."""
    levels = LEVELS["flow"]
    one, student = levels.sigma_max[None], Affine(levels.sigma_max[None], (2, 3, 2), torch.float32)
    data = two_gaussians(levels.path)
    roles = Plain(levels.path, data, {"student": student})
    pairs, everything = Pairs(tmp_path, (2, 3, 2), 0, {}), Cycle(Conds([1]), 1)
    fill(pairs, 60, roles, everything, Conds([0]), levels, steps=40, scale=1.0, solver="heun", batch=30)
    recipe = Recipe(
        "reflow", {"at_start": 1.0}, optimiser={"lr": 0.05, "ema": 0.0, "floor": 0.0}, run={"steps": 150, "batch": 15}
    )
    source = Data(pairs, everything, Conds([0]), levels, seed=0, size=15, paired=True)
    Training(partial(OBJECTIVES["reflow"], roles, **recipe.knobs), source, student, recipe).run()
    noise = Pairs(tmp_path / "others", (2, 3, 2), 1, {}).noise(0)[None].double()
    with torch.no_grad():
        assert_close(student(noise, one).double(), data[1].exact(noise, one, 0 * one), 0.03)


def test_further_noise_reaches_what_the_student_sees_and_nothing_else():
    def batch(**options):
        source = Data(torch.zeros(400, 4, 4), Conds([0] * 400), Conds([0]), LEVELS["flow"], seed=0, size=400, **options)
        return source.batch(0, range(400))

    plain, shaken = batch(), batch(perturbation=0.5)
    assert torch.equal(plain.noise, shaken.noise) and torch.equal(plain.time, shaken.time)
    half = torch.full((400,), 0.5, dtype=torch.float64)
    (x, _), (y, _) = plain.noisy(half), shaken.noisy(half)
    assert torch.equal(x, 0.5 * plain.noise) and (y - x).var().item() == pytest.approx(0.25**2, rel=0.05)


def test_immiscible_data_takes_the_nearest_of_its_own_noises():
    clean = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))

    def batch(items, immiscible):
        source = Data(clean, Conds([0] * 6), Conds([0]), LEVELS["flow"], seed=0, size=6, immiscible=immiscible)
        return source.batch(0, items)

    whole, first = batch(range(6), 8), batch(range(6), 1)
    drawn = torch.stack([first.draws.normal(f"noise {i}" if i else "noise", first.noise) for i in range(8)])
    best = (drawn - whole.clean).square().sum((2, 3)).argmin(0)
    assert torch.equal(whole.noise, drawn[best, torch.arange(6)]) and torch.equal(first.noise, drawn[0])
    assert torch.equal(batch([4, 1], 8).noise, whole.noise[[4, 1]])


def test_every_latent_is_used_before_any_is_used_again():
    source = Data(torch.arange(10.0)[:, None], Conds(range(10)), Conds([0]), LEVELS["flow"], seed=3, size=4)
    batches = [source.batch(step, range(4)) for step in range(5)]
    used = [int(value) for batch in batches for value in batch.clean[:, 0]]
    assert sorted(used[:10]) == sorted(used[10:]) == list(range(10)) and used[:10] != used[10:]
    assert [number for batch in batches for number in batch.cond.numbers] == used
    again = Data(torch.arange(10.0)[:, None], Conds(range(10)), Conds([0]), LEVELS["flow"], seed=3, size=4).batch(3, [2])
    assert torch.equal(again.clean, batches[3].clean[2:3]) and torch.equal(again.noise, batches[3].noise[2:3])
    with pytest.raises(ValueError, match="no latents"):
        Data(torch.zeros(0, 1), Conds([]), Conds([0]), LEVELS["flow"], seed=0, size=1)
