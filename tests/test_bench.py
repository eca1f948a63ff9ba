"""The harness behind ``make bench``: ratios from a clock that is known, and the files it writes. No real seconds here."""

import json

import pytest
import torch

from bench import Lines, Ratios, Result, Unavailable, __main__, timing
from bench.draw import save

ROWS = [
    {"problem": problem, "solver": solver, "evaluations": n, "error": 1 / n**order, "low": 0.01 / n, "high": 2.0}
    for problem in ("a", "b") for solver, order in (("core euler", 1), ("ours", 2)) for n in (4, 8)
]  # fmt: skip
RESULT = Result("How far?", "By counting.", ROWS, Lines("evaluations", "error", "solver", "problem"))


class Clock:
    """Work on this clock takes as long as it says."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def work(self, name, seconds, result):
        seconds = iter([0.0, *seconds])  # the first run is not timed

        def run():
            self.order.append(name)
            self.now += next(seconds)
            return torch.tensor(result)

        return run


def test_a_duel_is_the_median_of_the_pairs_ratios():
    clock = Clock()
    ours = clock.work("ours", [2.0, 4.0, 9.0], [3.0, 4.4])
    theirs = clock.work("theirs", [1.0, 4.0, 3.0], [3.0, 4.0])
    timed = timing.duel(ours, theirs, 3, clock)  # ratios 2, 1, 3
    assert (timed["ratio"], timed["low"], timed["high"]) == (2, 1.5, 2.5)
    assert (timed["seconds"], timed["baseline seconds"]) == (4, 3)
    assert timed["difference"] == pytest.approx(0.4 / 5, rel=1e-6)


def test_pairs_are_interleaved_and_take_turns_to_begin():
    clock = Clock()
    timing.duel(clock.work("a", [1.0] * 4, [1.0]), clock.work("b", [1.0] * 4, [1.0]), 4, clock)
    assert "".join(clock.order) == "ab" + "ba" + "ab" + "ba" + "ab"


def test_a_machine_that_slows_down_slows_both():
    clock = Clock()
    slower = [1.0, 2.0, 4.0, 8.0]
    timed = timing.duel(clock.work("a", slower, [1.0]), clock.work("b", slower, [1.0]), 4, clock)
    assert (timed["ratio"], timed["low"], timed["high"]) == (1, 1, 1)


def test_the_files_hold_the_rows(tmp_path):
    text = __main__.write("solvers", RESULT, tmp_path)
    assert (tmp_path / "solvers.md").read_text() == text
    assert "| a | core euler | 4 | 0.25 |" in text and "![solvers](solvers.png)" in text
    record = json.loads((tmp_path / "solvers.json").read_text())
    assert record["rows"] == ROWS
    assert torch.__version__ in record["machine"] and "ComfyUI" in record["machine"]
    assert (tmp_path / "solvers.png").stat().st_size > 1000


def test_cells_are_short():
    assert [__main__.cell(value) for value in (0.123456, 12, "euler", None)] == ["0.1235", "12", "euler", "-"]


def test_a_shorter_table_is_shown_and_all_rows_are_kept(tmp_path):
    table = [{"solver": "ours", "4": 0.0625}]
    text = __main__.write("x", Result("", "", ROWS, RESULT.plot, table), tmp_path)
    assert "| ours | 0.0625 |" in text and "core euler" not in text
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == ROWS


@pytest.mark.parametrize(
    "plot",
    [RESULT.plot, Ratios(("problem", "solver"), "error", "low", "high"), Ratios(("solver",), "error", "low", "high", goal=0.1)],
)
def test_every_row_leaves_ink(plot, tmp_path):
    def ink(rows):
        image = plot.draw(rows)
        save(image, tmp_path / "plot.png")
        return float((1 - image).sum())

    assert ink(ROWS) > ink(ROWS[:4]) > 0


def unavailable():
    raise Unavailable("no CUDA GPU is at hand.")


def test_where_it_cannot_run_old_figures_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__main__.BENCHMARKS, "gpu", unavailable)
    __main__.main(["gpu", "--output", str(tmp_path)])
    assert (tmp_path / "gpu.md").read_text() == "# gpu\n\nNever measured: no CUDA GPU is at hand.\n"
    assert not (tmp_path / "gpu.json").exists()

    monkeypatch.setitem(__main__.BENCHMARKS, "gpu", lambda: RESULT)
    __main__.main(["gpu", "--output", str(tmp_path)])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setitem(__main__.BENCHMARKS, "gpu", unavailable)
    __main__.main(["gpu", "--output", str(tmp_path)])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "gpu: no CUDA GPU is at hand. Kept: the figures of 2" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused_before_any_runs(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["startup", "overheads"])
    assert f"no benchmark named overheads: there are {', '.join(__main__.BENCHMARKS)}" in capsys.readouterr().err
