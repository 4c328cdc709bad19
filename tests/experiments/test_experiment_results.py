"""Tables of an experiment against numbers worked out by hand, and the pictures it draws."""

import csv
import io
import json
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dsr_kernels.experiments import grid as grids
from dsr_kernels.experiments import plots
from dsr_kernels.experiments.folder import DONE, Folder
from dsr_kernels.experiments.results import (
    ACCURACY,
    COLUMNS,
    Results,
    summarize,
    table_csv,
    table_md,
)
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.run.files import write_atomically

GRID = """
description = "By hand."
recipe = "lenet300-digits"
methods = ["dense", "static", "dsr"]
sparsities = [0.9, 0.95]
seeds = [0, 1, 2]
"""
# Test accuracy by (method, sparsity, seed); what is missing has failed.
ACCURACIES = {
    ("dense", None): [0.99, 0.97, 0.98],
    ("static", 0.9): [0.50, 0.54, 0.55],
    ("static", 0.95): [0.4, None, 0.2],
    ("dsr", 0.9): [None, 0.875, None],
    ("dsr", 0.95): [None, None, None],
}


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "hand.toml").write_text(GRID)
    return grids.load(str(tmp_path / "hand.toml"))


@pytest.fixture
def rows():
    made = []
    for (method, sparsity), values in ACCURACIES.items():
        for seed, value in enumerate(values):
            row = dict.fromkeys(COLUMNS) | {"method": method, "sparsity": sparsity, "seed": seed}
            row |= {"test_accuracy": value, "status": "done" if value else "failed"}
            made.append(row | {"error": None if value else "the loss became nan"})
    return made


def test_mean_and_sample_deviation_over_the_seeds(rows):
    static = summarize(rows, "static", 0.9, ACCURACY)
    # 50, 54, 55: mean 53; squared distances 9 + 1 + 4 = 14, over n - 1 = 2.
    assert (static.count, static.mean) == (3, pytest.approx(0.53))
    assert static.deviation == pytest.approx(7**0.5 / 100)
    two = summarize(rows, "static", 0.95, ACCURACY)
    assert (two.count, two.mean, two.deviation) == (2, pytest.approx(0.3), pytest.approx(0.02**0.5))
    one = summarize(rows, "dsr", 0.9, ACCURACY)
    assert (one.count, one.mean, one.deviation) == (1, 0.875, None)
    assert summarize(rows, "dsr", 0.95, ACCURACY) is None


def test_a_dense_run_is_in_every_column(rows):
    for sparsity in (0.9, 0.95):
        dense = summarize(rows, "dense", sparsity, ACCURACY)
        assert (dense.mean, dense.deviation) == (pytest.approx(0.98), pytest.approx(0.01))


def test_the_tables_say_so(grid, rows):
    found = list(csv.DictReader(io.StringIO(table_csv(grid, rows))))
    assert [line["method"] for line in found] == ["dense", "static", "dsr"]
    static = {key: float(value) for key, value in found[1].items() if key != "method"}
    expected = {"0.9 mean": 53, "0.9 sd": 2.64575131, "0.9 n": 3}
    expected |= {"0.95 mean": 30, "0.95 sd": 14.1421356, "0.95 n": 2}
    assert static == pytest.approx(expected)
    assert (found[2]["0.9 sd"], found[2]["0.95 mean"], found[2]["0.95 n"]) == ("", "", "0")
    text = table_md(grid, rows)
    assert "| sparsity | 0.9 | 0.95 |" in text
    assert "| dense | 98.00 ± 1.00 | 98.00 ± 1.00 |" in text
    assert "| static | 53.00 ± 2.65 | 30.00 ± 14.14 (n = 2) |" in text
    assert "| dsr | 87.50 (n = 1) | failed |" in text
    assert "- static, sparsity 0.95, seed 1: failed: the loss became nan" in text
    assert "15 runs, 9 finished; means over 3 seeds ±" in text and "top 5" not in text


def test_speeds_have_three_digits_and_no_deviation(grid, rows):
    finished = [row for row in rows if row["status"] == "done"]
    for row in finished:
        row["images_per_second"] = {"dense": 12_345.0, "static": 98.765, "dsr": 6.0}[row["method"]]
    text = table_md(grid, finished)
    assert "9 runs, all finished;" in text
    assert "| dense | 12,300 | 12,300 |" in text
    assert "| static | 98.8 | 98.8 (n = 2) |\n| dsr | 6 (n = 1) |" in text


def finish(folder: Folder, cell, accuracy: float, epochs: int = 3) -> None:
    """Leaves what a finished run leaves."""
    run = folder.run_of(cell)
    run.mkdir(parents=True)
    write_atomically(run / "recipe.toml", recipes.dump(cell.recipe))
    dense = cell.recipe.method == "dense"
    layers = [] if dense else [{"name": n, "shape": [10, 5], "positions": 50} for n in ("a", "b")]
    model = {"layers": layers, "dense_parameters": 107 if dense else 7, "nonzeros": 10}
    (run / "run.json").write_text(json.dumps({"model": model}))
    lines = [f"{e},{accuracy - 0.1 / e}" for e in range(1, epochs + 1)]
    (run / "metrics.csv").write_text("\n".join(["epoch,validation_accuracy", *lines, ""]))
    (run / "timings.csv").write_text("train_seconds,images_per_second\n1.5,100\n2,400\n4,300\n")
    if dense:
        (run / "rewires.csv").write_text("iteration,epoch,nonzeros\n0,0,0\n")
    else:
        text = "iteration,epoch,nonzeros,exploration,nonzeros:a,nonzeros:b\n0,0,10,0.1,5,5\n"
        moved = "" if cell.recipe.method == "static" else "5,1,9,0.125,2,7\n9,2,8,0.25,1,7\n"
        (run / "rewires.csv").write_text(text + moved)
    (run / "results.json").write_text(json.dumps({"test_accuracy": accuracy, "test_top5": 0.995}))


def test_a_finished_cell_with_a_damaged_file_is_named_and_the_others_count(grid, tmp_path):
    cells = grid.cells(tmp_path / "out/runs")
    folder = Folder.open(tmp_path / "out", grid, cells)
    for cell in cells:
        finish(folder, cell, 0.8)
    runs = [folder.run_of(cell) for cell in cells if cell.method == "dsr"]
    (runs[0] / "metrics.csv").write_bytes(b"epoch,validation_accuracy\n\xff,1\n")
    (runs[1] / "rewires.csv").unlink()
    rows = {
        cell.name: row
        for cell, row in zip(cells, Results(folder, grid, cells).write(), strict=True)
    }
    for run, message in zip(
        runs, ("metrics.csv: not a table of", "rewires.csv is gone"), strict=False
    ):
        assert rows[run.name]["status"] == "failed" and message in rows[run.name]["error"]
    assert sum(row["status"] == DONE for row in rows.values()) == len(cells) - 2
    results = Results(folder, grid, cells)
    plots.write(results, results.write())
    (runs[2] / "timings.csv").write_text("epoch,train_seconds,images_per_second\n2,2,400\n")
    row = dict(zip(rows, Results(folder, grid, cells).write(), strict=True))[runs[2].name]
    assert row["train_seconds"] is None and row["images_per_second"] == 400  # the first is lost


def test_rows_and_pictures_come_from_the_runs(grid, tmp_path):
    runs = tmp_path / "out/runs"
    cells = grid.cells(runs)
    folder = Folder.open(tmp_path / "out", grid, cells)
    unfinished = cells[-1]
    for index, cell in enumerate(cells[:-1]):
        finish(folder, cell, 0.8 + index / 100)
    results = Results(folder, grid, cells)
    rows = {cell.name: row for cell, row in zip(cells, results.write(), strict=True)}
    dsr = rows["dsr-0.9-s0"]
    assert (dsr["learnable_parameters"], dsr["nonzeros"], dsr["exploration"]) == (15, 8, 0.25)
    assert (dsr["train_seconds"], dsr["images_per_second"]) == (7.5, 300)
    assert (dsr["test_top5"], dsr["status"]) == (0.995, DONE)
    assert dsr["validation_accuracy"] == pytest.approx(dsr["test_accuracy"] - 0.1 / 3)
    dense = rows["dense-s0"]
    assert (dense["learnable_parameters"], dense["nonzeros"], dense["exploration"]) == (
        107,
        None,
        None,
    )
    assert rows[unfinished.name]["status"] == "waiting"
    assert "top 5" in (folder.path / "table.md").read_text()
    plots.write(results, list(rows.values()))
    names = {path.name for path in (folder.path / "plots").iterdir()}
    kinds = ("epochs", "nonzeros", "exploration")
    assert names == {"accuracy.png", "cost.png"} | {
        f"{kind}-{s}.png" for kind in kinds for s in (0.9, 0.95)
    }


def test_curves_are_means_over_the_seeds_and_dense_is_a_line(grid, tmp_path):
    cells = grid.cells(tmp_path / "out/runs")
    folder = Folder.open(tmp_path / "out", grid, cells)
    for cell in cells:
        finish(folder, cell, 0.8 + 0.01 * cell.seed, epochs=3 - (cell.seed == 2))
    results = Results(folder, grid, cells)
    rows = results.rows()
    stories = plots._by_method(results, plots._stories(results), 0.9)
    axes = plots.epochs(results, stories, 0.9).axes[0]
    curve = next(line for line in axes.lines if line.get_label() == "dsr")
    assert list(curve.get_xdata()) == [1, 2]  # the third epoch is not in every seed
    assert list(curve.get_ydata()) == pytest.approx([71.0, 76.0])
    explored = plots.exploration(results, {"dsr": stories["dsr"]}, 0.9).axes[0].lines[0]
    assert list(explored.get_ydata()) == pytest.approx([10, 12.5, 25, 25])
    axes = plots.accuracy(results, rows).axes[0]
    flat = next(line for line in axes.lines if line.get_label() == "dense")
    assert list(flat.get_ydata()) == pytest.approx([81.0, 81.0])
    by_time, by_bytes = plots.cost(results, rows).axes
    for axes in (by_time, by_bytes):
        dots = next(line for line in axes.lines if line.get_label() == "dsr")
        assert list(dots.get_ydata()) == pytest.approx([81.0, 81.0])
    assert by_time.get_ylabel() == "test accuracy (%)"
    dots = {line.get_label(): line for line in by_bytes.lines}
    assert list(dots["dense"].get_xdata()) == pytest.approx([107 * 4 / 2**20] * 2)
    dots = {line.get_label(): line for line in by_time.lines}
    assert list(dots["dsr"].get_xdata()) == pytest.approx([1000 / 300] * 2)


def test_at_one_sparsity_the_methods_that_finished_stand_side_by_side(tmp_path):
    (tmp_path / "one.toml").write_text(GRID.replace("[0.9, 0.95]", "[0.9]"))
    grid = grids.load(str(tmp_path / "one.toml"))
    cells = grid.cells(tmp_path / "out/runs")
    folder = Folder.open(tmp_path / "out", grid, cells)
    for cell in cells:
        if cell.method != "static":  # it has failed, or is yet to come
            finish(folder, cell, 0.8 + 0.01 * cell.seed)
    results = Results(folder, grid, cells)
    axes = plots.accuracy(results, results.rows()).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dense", "dsr"]
    dots = [bars.lines[0].get_xydata()[0] for bars in axes.containers]
    assert dots == [pytest.approx([0, 81]), pytest.approx([1, 81])]
    bar = axes.containers[1].lines[2][0].get_segments()[0]
    assert list(bar[:, 1]) == pytest.approx([80, 82])


def test_one_epoch_is_a_dot(grid, tmp_path):
    cells = grid.cells(tmp_path / "out/runs")
    folder = Folder.open(tmp_path / "out", grid, cells)
    for cell in cells:
        finish(folder, cell, 0.8, epochs=1)
    results = Results(folder, grid, cells)
    stories = plots._by_method(results, plots._stories(results), 0.9)
    for curve in plots.epochs(results, stories, 0.9).axes[0].lines:
        assert curve.get_marker() == "o" and list(curve.get_xdata()) == [1]


def test_an_empty_experiment_has_tables_too(grid, tmp_path):
    cells = grid.cells(tmp_path / "out/runs")
    results = Results(Folder.open(tmp_path / "out", grid, cells), grid, cells)
    rows = results.write()
    plots.write(results, rows)
    assert {row["status"] for row in rows} == {"waiting"}
    assert Path(tmp_path / "out/table.csv").read_text().startswith("method,0.9 mean")


@pytest.mark.parametrize("levels", [[0.9], [0.9, 0.99]])
def test_the_axis_of_sparsities_rises_to_the_right(levels):
    axes = Figure().subplots()
    axes.errorbar([1 - level for level in levels], levels, levels, marker="o", capsize=3)
    axes.axhline(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots._sparsity_axis(axes, levels)
    left, right = axes.get_xlim()
    assert left > 1 - levels[0] and 1 - levels[-1] > right > 0
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"{100 * s:g}" for s in levels]
