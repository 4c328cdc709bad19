"""The results of a grid: a row for each cell, and tables over the seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsr_kernels import text_table
from dsr_kernels.errors import UsageError
from dsr_kernels.experiments.folder import DONE, FAILED, Folder
from dsr_kernels.experiments.grid import Cell, Grid
from dsr_kernels.training.run.csv_files import cell
from dsr_kernels.training.run.files import write_atomically
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.run.story import Story

COLUMNS = (
    "method",
    "sparsity",
    "seed",
    "test_accuracy",
    "test_top5",
    "validation_accuracy",
    "learnable_parameters",
    "nonzeros",
    "train_seconds",
    "images_per_second",
    "exploration",
    "status",
    "error",
)

Row = dict[str, Any]  # by COLUMNS; None where there is no value


@dataclass(frozen=True)
class Quantity:
    """How a table shows a column of the rows."""

    column: str
    title: str
    scale: float = 1.0
    digits: int = 0
    rough: bool = False  # three significant digits, no deviation; the load decides the other digits

    def show(self, value: float) -> str:
        value *= self.scale
        if self.rough:
            return f"{float(f'{value:.3g}'):,.10g}"
        return f"{value:,.{self.digits}f}"


ACCURACY = Quantity("test_accuracy", "Test accuracy, %", 100.0, 2)
SIZE = Quantity("learnable_parameters", "Learnable parameters at the end")
SPEED = Quantity("images_per_second", "Training speed, images/s", rough=True)
QUANTITIES = (
    ACCURACY,
    Quantity("test_top5", "Test accuracy, top 5, %", 100.0, 2),
    Quantity("validation_accuracy", "Validation accuracy, last epoch, %", 100.0, 2),
    SIZE,
    Quantity("exploration", "Exploration rate: positions ever active, %", 100.0, 1),
    SPEED,
)


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over the seeds of one method at one sparsity.

    The deviation of one value is None.
    """

    count: int
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: list[float]) -> Summary | None:
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(len(values), statistics.mean(values), deviation)


class Results:
    """Reads the rows of an experiment. It reads those of finished cells only once."""

    def __init__(self, folder: Folder, grid: Grid, cells: list[Cell]) -> None:
        self.folder, self.grid, self.cells = folder, grid, cells
        self._finished: dict[str, Row] = {}

    def rows(self) -> list[Row]:
        failures = self.folder.failures()
        return [self._row(cell, *self.folder.status(cell, failures)) for cell in self.cells]

    def _row(self, cell: Cell, status: str, error: str) -> Row:
        if cell.name in self._finished:
            return self._finished[cell.name]
        row = dict.fromkeys(COLUMNS)
        row |= {"method": cell.method, "sparsity": cell.sparsity, "seed": cell.seed}
        row |= {"status": status, "error": error or None}
        if status == DONE:
            try:
                row |= measured(self.story(cell))
            except UsageError as error:  # a damaged file: the other cells' results still count
                return row | {"status": FAILED, "error": str(error)}
            self._finished[cell.name] = row
        return row

    def story(self, cell: Cell) -> Story:
        """The records of a finished cell. Raises UsageError where one is damaged or gone."""
        run = Run.open(self.folder.run_of(cell))
        story = Story.read(run)
        if not story.rewires:
            raise UsageError(f"{run.folder / 'rewires.csv'} is gone or has no rows")
        return story

    def write(self) -> list[Row]:
        """Writes results.csv, table.csv and table.md; returns the rows."""
        rows = self.rows()
        path = self.folder.path
        write_atomically(path / "results.csv", _csv(COLUMNS, [list(r.values()) for r in rows]))
        write_atomically(path / "table.csv", table_csv(self.grid, rows))
        write_atomically(path / "table.md", table_md(self.grid, rows))
        return rows


def measured(story: Story) -> Row:
    """The columns of a row that a finished run gives."""
    results, model = story.results, story.about["model"]
    nonzeros = int(story.rewires[-1]["nonzeros"]) if model["layers"] else None
    explored = [row["exploration"] for row in story.rewires if row.get("exploration") is not None]
    last = story.metrics[-1] if story.metrics else {}
    # A table that was damaged may have been begun anew in the middle of the run.
    timed = bool(story.timings) and story.timings[0].get("epoch") in (None, 1)
    return {
        "test_accuracy": results["test_accuracy"],
        "test_top5": results.get("test_top5"),
        "validation_accuracy": last.get("validation_accuracy"),
        "learnable_parameters": model["dense_parameters"] + (nonzeros or 0),
        "nonzeros": nonzeros,
        "train_seconds": sum(row["train_seconds"] for row in story.timings) if timed else None,
        "images_per_second": story.speed(),
        "exploration": explored[-1] if explored else None,
    }


def summarize(rows: list[Row], method: str, sparsity: float, quantity: Quantity) -> Summary | None:
    """A quantity over the seeds; None where no cell has it.

    A method that does not depend on the sparsity has one summary for all of them.
    """
    values = [row[quantity.column] for row in _belonging(rows, method, sparsity)]
    return Summary.of([value for value in values if value is not None])


def _belonging(rows: list[Row], method: str, sparsity: float) -> list[Row]:
    return [r for r in rows if r["method"] == method and r["sparsity"] in (None, sparsity)]


def table_csv(grid: Grid, rows: list[Row]) -> str:
    """Test accuracy in %: mean, sample standard deviation and number of seeds at each sparsity."""
    head = ["method"]
    head += [f"{s:g} {part}" for s in grid.sparsities for part in ("mean", "sd", "n")]
    lines = []
    for method in grid.methods:
        line: list[Any] = [method]
        for sparsity in grid.sparsities:
            found = summarize(rows, method, sparsity, ACCURACY)
            if found is None:
                line += [None, None, 0]
            else:
                deviation = found.deviation
                line += [100 * found.mean, deviation and 100 * deviation, found.count]
        lines.append(line)
    return _csv(head, lines)


def table_md(grid: Grid, rows: list[Row]) -> str:
    """A table for each quantity that any cell has, and a list of what went wrong."""
    over = f"means over {len(grid.seeds)} seeds ± sample standard deviation"
    over = over if len(grid.seeds) > 1 else "one seed"
    done = sum(row["status"] == DONE for row in rows)
    runs = f"{len(rows)} runs, {'all' if done == len(rows) else done} finished"
    parts = [f"# {grid.name}", f"{grid.description}\n\n{runs}; {over}."]
    for quantity in QUANTITIES:
        if any(row[quantity.column] is not None for row in rows):
            parts.append(f"## {quantity.title}\n\n{_markdown(grid, rows, quantity)}")
    wrong = [_error_line(row) for row in rows if row["error"]]
    if wrong:
        parts.append("## Failed\n\n" + "\n".join(wrong))
    return "\n\n".join(parts) + "\n"


def _markdown(grid: Grid, rows: list[Row], quantity: Quantity) -> str:
    header = ["sparsity", *(f"{sparsity:g}" for sparsity in grid.sparsities)]
    lines = [
        [method, *(_shown(grid, rows, method, sparsity, quantity) for sparsity in grid.sparsities)]
        for method in grid.methods
    ]
    return text_table.markdown(header, lines)


def _shown(grid: Grid, rows: list[Row], method: str, sparsity: float, quantity: Quantity) -> str:
    found = summarize(rows, method, sparsity, quantity)
    if found is None:
        states = {row["status"] for row in _belonging(rows, method, sparsity)}
        return "" if DONE in states else ", ".join(sorted(states))
    text = quantity.show(found.mean)
    if found.deviation is not None and not quantity.rough:
        text += f" ± {quantity.show(found.deviation)}"
    return text if found.count == len(grid.seeds) else f"{text} (n = {found.count})"


def _error_line(row: Row) -> str:
    sparsity = "-" if row["sparsity"] is None else f"{row['sparsity']:g}"
    which = f"{row['method']}, sparsity {sparsity}, seed {row['seed']}"
    return f"- {which}: {row['status']}: {row['error']}"


def _csv(head: Sequence[str], lines: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow([cell(value) for value in line])
    return text.getvalue()
