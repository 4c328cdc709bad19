"""`dsr experiment`: from its arguments to an exit code."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsr_kernels import text_table
from dsr_kernels.environment import check_processor
from dsr_kernels.errors import Interrupted, UsageError
from dsr_kernels.experiments import grid as grids
from dsr_kernels.experiments import plots
from dsr_kernels.experiments.folder import DONE, Folder
from dsr_kernels.experiments.grid import Cell
from dsr_kernels.experiments.results import Results, Row
from dsr_kernels.experiments.runner import Options, Runner
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.placement import find_device


def run(options: argparse.Namespace) -> int:
    """Runs or reports a grid; returns 0 if every cell is done, 1 if one failed.

    Raises UsageError for wrong options and Interrupted where a signal stopped it.
    """
    if options.list:
        return _list()
    if options.name is None:
        raise UsageError("experiment: expected a grid (`dsr experiment --list`) or a TOML file")
    for name in ("jobs", "threads"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise UsageError(f"--{name}: expected at least 1, got {number}")
    grid = grids.load(options.name)
    out = options.out or Path("runs") / grid.name
    cells = grid.cells(out.resolve() / "runs", options.overrides)
    if options.report:
        if not (out / "grid.toml").is_file():
            raise UsageError(f"--report: {out} holds no experiment")
        return _finish(Results(Folder(out), grid, cells))
    if options.device:
        find_device(options.device)
    check_processor()
    folder = Folder.open(out, grid, cells)
    results = Results(folder, grid, cells)
    chosen = Options(options.jobs, options.threads, options.data_dir, options.device)
    runner = Runner(folder, cells, chosen, results.write)
    _announce(grid, out, runner)
    if runner.waiting:
        _check_data(runner.waiting, options.data_dir)
    code = runner.run()
    if code:
        done = sum(row["status"] == DONE for row in results.write())
        message = f"stopped with {done} of {len(cells)} cells done; the same command continues it"
        raise Interrupted(message, code)
    return _finish(results)


def _list() -> int:
    rows = [(name, grids.load(name).description) for name in grids.names()]
    print("\n".join(text_table.columns(rows, left=(0, 1))))
    return 0


def _announce(grid: grids.Grid, out: Path, runner: Runner) -> None:
    left, jobs = len(runner.waiting), runner.options.jobs
    where = f"{len(runner.cells)} cells in {out}"
    print(f"{grid.name}: {where}, {left} to run, {jobs} at a time", flush=True)


def _check_data(cells: list[Cell], data_dir: Path | None) -> None:
    """Raises UsageError, once and before the first cell, for files that every cell would miss."""
    datasets.load(cells[0].recipe.data, data_dir)


def _finish(results: Results) -> int:
    """Writes tables and plots, and prints the table of accuracies; returns the exit code."""
    rows = results.write()
    try:
        plots.write(results, rows)
    except UsageError as error:  # matplotlib is not installed
        print(f"no plots: {error}")
    path = results.folder.path / "table.md"
    print(_first_table(path.read_text(encoding="utf-8")))
    print(f"all tables: {path}; results.csv and plots lie beside it")
    return _failed(rows)


def _first_table(text: str) -> str:
    tables = text.split("## ")
    return tables[1].strip() if len(tables) > 1 else ""


def _failed(rows: list[Row]) -> int:
    wrong = [row for row in rows if row["error"]]
    for row in wrong:
        level = "" if row["sparsity"] is None else f" at {row['sparsity']:g}"
        print(f"{row['method']}{level}, seed {row['seed']}: {row['status']}: {row['error']}")
    return 1 if wrong else 0
