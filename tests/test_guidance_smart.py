"""Smart Guidance: what it runs is what its table says, and the table is what the tool chooses."""

import pytest
from comfyui_distillery.samplers.core import complete
from comfyui_distillery.samplers.guidance import RULES
from comfyui_distillery.samplers.guidance.skipping import SKIPS
from comfyui_distillery.samplers.guidance.smart import CHOICES, SAVINGS, choice

from bench import guidance
from tools import choose_guidance

from .problems import PATHS

WORDS = [word for word in SAVINGS if word != "nothing"]


@pytest.mark.parametrize("kind", ["ve", "flow"])
def test_every_choice_is_a_rule_with_settings_that_it_knows(kind):
    for row in CHOICES[kind]["skipping"]:
        rule = SKIPS[row["rule"]]
        rule.check(complete(rule.knobs, row["knobs"]))
        assert not rule.is_neutral(row["knobs"])
    for row in CHOICES[kind]["shaping"]:
        assert not RULES[row["rule"]].is_neutral(row["knobs"]) and row["from scale"] > 1


@pytest.mark.parametrize("kind", ["ve", "flow"])
@pytest.mark.parametrize("word", WORDS)
def test_there_is_a_choice_for_every_word_that_saves_at_least_what_it_says(kind, word):
    rows = [row for row in CHOICES[kind]["skipping"] if row["saving"] == word]
    steps = [row["steps"] for row in rows]
    assert steps == sorted(set(steps)) and steps[0] <= 8
    assert all(row["saved"] >= SAVINGS[word] for row in rows if row["steps"] >= 12)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("steps", [1, 8, 11, 12, 25, 100])
def test_it_is_the_row_of_the_most_steps_that_the_run_has(path, word, steps):
    rows = [row for row in CHOICES["flow" if path.is_flow else "ve"]["skipping"] if row["saving"] == word]
    expected = [row for row in rows if row["steps"] <= max(steps, rows[0]["steps"])][-1]
    assert choice(path, steps, 1.0, word, 4096) == [(SKIPS[expected["rule"]], expected["knobs"])]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_shaping_begins_at_its_scale_and_nothing_is_skipped_for_nothing(path):
    rows = CHOICES["flow" if path.is_flow else "ve"]["shaping"]
    for scale in (1.0, 3.0, 6.0, 20.0):
        expected = [(RULES[row["rule"]], row["knobs"]) for row in rows if scale >= row["from scale"]]
        assert choice(path, 20, scale, "nothing", rows[0]["elements"] if rows else 1) == expected


def test_a_norm_threshold_grows_with_the_root_of_the_latent():
    (row,) = CHOICES["flow"]["shaping"]
    for times, factor in ((4, 2), (0.25, 0.5), (1e9, 1000 / row["knobs"]["norm_threshold"])):
        ((_, knobs),) = choice(PATHS["flow"], 20, 20.0, "nothing", row["elements"] * times)
        assert knobs == row["knobs"] | {"norm_threshold": pytest.approx(row["knobs"]["norm_threshold"] * factor)}


def test_the_tool_takes_the_least_error_among_those_that_save_enough():
    found = {0: [(0.25, 0.01)], 1: [(0.30, 0.2), (0.32, 0.2)], 2: [(0.31, 0.1), (0.33, 0.1)], 3: [(0.4, 0.5)]}
    rows = {word: choose_guidance.least(found, word, 20) for word in WORDS}
    chosen = {word: choose_guidance.CANDIDATES.index((row["rule"], row["knobs"])) for word, row in rows.items()}
    assert chosen == {"a little": 0, "balanced": 2, "much": 3}
    assert rows["balanced"]["saved"] == 0.32 and rows["balanced"]["error"] == pytest.approx(0.1)
    few = choose_guidance.least({0: [(0.1, 0.01)], 1: [(0.2, 0.3)]}, "much", 8)
    assert (few["rule"], few["knobs"]) == choose_guidance.CANDIDATES[1]


def test_the_benchmark_reads_errors_at_a_saving_on_a_line_in_log_error():
    points = [(0.4, 0.4), (0.2, 0.1), (0.3, 0.2)]
    assert guidance.error_at(points, 0.3) == pytest.approx(0.2)
    assert guidance.error_at(points, 0.25) == pytest.approx((0.1 * 0.2) ** 0.5)
    assert guidance.error_at(points, 0.5) is None and guidance.error_at(points, 0.1) is None


def test_the_benchmark_means_over_the_runs_that_reach_a_saving():
    rows = [
        {"scale": scale, "steps": 20, "saved": saved, "error": error}
        for scale, points in {3: [(0.2, 0.1), (0.4, 0.1)], 5: [(0.2, 0.4), (0.4, 0.4)], 8: [(0.1, 0.1), (0.2, 9.0)]}.items()
        for saved, error in points
    ]
    assert guidance.typical(rows, 0.3) == (pytest.approx(0.2), 2)
    assert guidance.typical(rows, 0.45) == (None, 0)
    assert guidance.worded(*guidance.typical(rows, 0.3), runs=3) == "0.200 (2)"
    assert guidance.worded(0.5, 3, runs=3) == "0.500" and guidance.worded(None, 0, runs=3) == "-"
