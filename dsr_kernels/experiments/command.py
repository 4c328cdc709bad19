"""`dsr experiment`: from its arguments to an exit code."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsr_kernels import text_table
from dsr_kernels.environment import check_processor
from dsr_kernels.errors import Interrupted, SystemFailed, UsageError, check_threads, in_words
from dsr_kernels.experiments import grid as grids
from dsr_kernels.experiments import plots
from dsr_kernels.experiments.folder import DONE, Folder
from dsr_kernels.experiments.grid import Cell
from dsr_kernels.experiments.launchers import SLURM, Choice, Launcher
from dsr_kernels.experiments.results import Results, Row
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.placement import find_device
from dsr_kernels.training.run import out_folder


def run(options: argparse.Namespace) -> int:
    """Runs or reports a grid; returns 0 if every cell is done, 1 if one failed.

    Raises UsageError for wrong options, Interrupted where a signal stopped it, and SystemFailed
    where its folder cannot be written.
    """
    if options.list:
        return _list()
    if options.name is None:
        raise UsageError("experiment: expected a grid (`dsr experiment --list`) or a TOML file")
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs: expected at least 1, got {options.jobs}")
    check_threads(options.threads)
    grid = grids.load(options.name)
    out = options.out or Path("runs") / grid.name
    out_folder.check(out)
    try:
        return _run(options, grid, out)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SystemFailed(
            f"{in_words(error)}; {out} keeps every cell as far as it had come; once that is "
            "mended, the same command continues it"
        ) from None


def _run(options: argparse.Namespace, grid: grids.Grid, out: Path) -> int:
    cells = grid.cells(out.resolve() / "runs", options.overrides)
    if options.report:
        if not (out / "grid.toml").is_file():
            raise UsageError(f"--report: {out} holds no experiment")
        return _finish(Results(Folder(out), grid, cells))
    choice = Choice(options, out)
    if choice.name != SLURM:  # there other machines compute, and each job sees for itself
        if options.device:
            find_device(options.device)
        check_processor()
    left = [cell for cell in cells if not Folder(out).done(cell)]
    if left:
        _check_data(left, options.data_dir)
    folder = Folder.open(out, grid, cells)
    results = Results(folder, grid, cells)
    launcher = choice.open(folder, cells, results.write)
    _announce(grid, out, cells, launcher)
    code = launcher.run()
    if code:
        done = sum(row["status"] == DONE for row in results.write())
        how = launcher.how_to_go_on()
        raise Interrupted(f"stopped with {done} of {len(cells)} cells done; {how}", code)
    return _finish(results)


def _list() -> int:
    rows = [(name, grids.load(name).description) for name in grids.names()]
    print("\n".join(text_table.columns(rows, left=(0, 1))))
    return 0


def _announce(grid: grids.Grid, out: Path, cells: list[Cell], launcher: Launcher) -> None:
    print(f"{grid.name}: {len(cells)} cells in {out}, {launcher.announce()}", flush=True)


def _check_data(cells: list[Cell], data_dir: Path | None) -> None:
    """Raises UsageError, once and before the folder is made, for what every cell would miss."""
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
