"""The folder of an experiment, which says how far each cell of its grid has come.

OUT/grid.toml      the grid file                  OUT/results.csv  one row a cell
OUT/runs/CELL      a run folder, log.txt in it    OUT/table.csv, OUT/table.md  over the seeds
OUT/recipes        the resolved recipe of each    OUT/plots
OUT/failures.json  why the last attempt failed    OUT/jobs, OUT/jobs.json  of a cluster
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from dsr_kernels.errors import UsageError
from dsr_kernels.experiments.grid import Cell, Grid
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run import out_folder
from dsr_kernels.training.run.files import temporary, write_atomically
from dsr_kernels.training.run.folder import Run

DONE, FAILED, SKIPPED, UNFINISHED, WAITING = "done", "failed", "skipped", "unfinished", "waiting"
JOBS = "jobs.json"
WRITTEN = ("recipes", "plots", "jobs")  # as files in them; each of the runs sees to itself
Failures = dict[str, tuple[str, str]]  # (FAILED or SKIPPED, error) by the name of the cell


class Folder:
    """An experiment on disk. `open` finds or makes it, `lock` keeps other processes out."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.runs = self.path / "runs"
        self._lock = None

    @classmethod
    def open(cls, path: Path, grid: Grid, cells: list[Cell]) -> Folder:
        """The experiment in `path`, locked; a new one if there is none.

        Raises UsageError where something else lies there, another process holds the lock, or a run
        was made with another recipe than its cell has now.
        """
        if not (path / "grid.toml").is_file():
            out_folder.prepare(path, "experiment", (temporary("grid.toml"),))
        folder = cls(path)
        folder.lock()
        out_folder.refuse_links(folder.path, WRITTEN)
        for cell in cells:
            folder._check(cell)
        write_atomically(folder.path / "grid.toml", grid.text)
        (folder.path / "recipes").mkdir(exist_ok=True)
        for cell in cells:
            write_atomically(folder.recipe_of(cell), recipes.dump(cell.recipe))
        return folder

    def lock(self) -> None:
        """Locks it until the process ends. Raises UsageError if another one holds the lock."""
        self._lock = out_folder.lock(self.path)
        if self._lock is None:
            raise UsageError(f"{self.path}: another process is running this experiment")

    def run_of(self, cell: Cell) -> Path:
        return self.runs / cell.name

    def recipe_of(self, cell: Cell) -> Path:
        return self.path / "recipes" / f"{cell.name}.toml"

    def begun(self, cell: Cell) -> bool:
        return (self.run_of(cell) / "recipe.toml").is_file()

    def done(self, cell: Cell) -> bool:
        return (self.run_of(cell) / "results.json").is_file()

    def busy(self, cell: Cell) -> bool:
        """Whether a process trains this run, such as one that a killed experiment left over."""
        return out_folder.is_locked(self.run_of(cell))

    def accuracy(self, cell: Cell) -> float:
        """The test accuracy of a cell that is done."""
        return Run(self.run_of(cell)).read_json("results.json")["test_accuracy"]

    def status(self, cell: Cell, failures: Failures) -> tuple[str, str]:
        """(status, error) of a cell, as the disk has them."""
        if self.done(cell):
            return DONE, ""
        if cell.name in failures:
            return failures[cell.name]
        return (UNFINISHED if self.begun(cell) else WAITING), ""

    def failures(self) -> Failures:
        """The cells that failed or were skipped when the experiment ran last."""
        path = self.path / "failures.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {name: (status, error) for name, (status, error) in found.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}: damaged ({error}); remove it: it only says what failed"
            ) from None

    def write_failures(self, failures: Failures) -> None:
        text = json.dumps(failures, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path / "failures.json", text)

    def jobs(self) -> dict[str, str]:
        """The ids of jobs that are not known to be over, by the name of the cell."""
        return self._recorded()[1]

    def launcher(self) -> str:
        """The `--launcher` of these jobs; "" where there are none."""
        return self._recorded()[0]

    def write_jobs(self, launcher: str, jobs: dict[str, str]) -> None:
        record = {"launcher": launcher, "jobs": jobs}
        write_atomically(self.path / JOBS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _recorded(self) -> tuple[str, dict[str, str]]:
        path = self.path / JOBS
        if not path.is_file():
            return "", {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return str(found["launcher"]), {str(k): str(v) for k, v in found["jobs"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"{path}: damaged ({error}); it says which jobs run which cells: once no job of "
                "this experiment is left in the cluster's queue, remove it"
            ) from None

    def _check(self, cell: Cell) -> None:
        if not self.begun(cell):
            return
        theirs = Run.open(self.run_of(cell)).recipe()
        if found := recipes.difference(_movable(theirs), _movable(cell.recipe)):
            raise UsageError(
                f"{cell.name} was run with another recipe than the grid has now: {found}; name "
                f"another folder with --out, or remove {self.run_of(cell)}"
            )


def _movable(recipe: Recipe) -> Recipe:
    """The recipe without the folder of its `start.run`, which may have been moved."""
    other = copy.deepcopy(recipe)
    other.start.run = Path(recipe.start.run).name
    return other
