"""Runs the cells of a grid as processes, some at a time, until no cell is left that can run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from dsr_kernels.experiments.attempt import Attempt, Options, Process
from dsr_kernels.experiments.folder import FAILED, SKIPPED, Failures, Folder
from dsr_kernels.experiments.grid import Cell
from dsr_kernels.experiments.progress import Progress
from dsr_kernels.training.signals import StopRequest

POLL_SECONDS = 0.1
# Starts this very package. A source tree in the current folder would come before it otherwise.
_START = (
    f"import sys; sys.path[0] = {str(Path(__file__).parents[2])!r}; "
    "from dsr_kernels.cli import main; sys.exit(main())"
)
TRAIN = (sys.executable, "-c", _START, "train", "--quiet", "--no-report")


class Runner:
    """Runs the cells that are not done. Calls `after_each` whenever a cell has ended."""

    def __init__(
        self, folder: Folder, cells: list[Cell], options: Options, after_each: Callable[[], None]
    ) -> None:
        self.folder, self.options, self.after_each = folder, options, after_each
        self.cells = cells
        self.waiting = [cell for cell in cells if not folder.done(cell)]
        self.running: dict[str, Process] = {}  # by the name of the cell
        self.failures: Failures = {}  # of now; cells that failed earlier are tried again

    def announce(self) -> str:
        return f"{len(self.waiting)} to run, {self.options.jobs} at a time"

    def how_to_go_on(self) -> str:
        return "the same command continues it"

    def run(self) -> int:
        """Runs all cells that can run. Returns 0, or 128 + the signal that ended it early."""
        self.folder.write_failures(self.failures)
        done = len(self.cells) - len(self.waiting)
        self.progress = Progress(len(self.cells), done)
        try:
            with StopRequest() as stop:
                while self.running or (self.waiting and not stop.signum):
                    if stop.signum:
                        self._stop(stop.signum)
                    else:
                        self._start_ready()
                    ended = len(self.cells) - len(self.waiting) - len(self.running)
                    self.progress.show(ended, list(self.running))
                    time.sleep(POLL_SECONDS)
                    self._reap(stopping=bool(stop.signum))
                return stop.exit_code if stop.signum else 0
        finally:
            self.progress.close()

    def _start_ready(self) -> None:
        for cell in list(self.waiting):
            if cell.needs in self.failures:
                self.waiting.remove(cell)
                reason = f"it starts from {cell.needs} ({self.failures[cell.needs][0]})"
                self._fail(cell, SKIPPED, reason)
            elif len(self.running) < self.options.jobs and self._ready(cell):
                self.waiting.remove(cell)
                self.running[cell.name] = self._start(cell)

    def _ready(self, cell: Cell) -> bool:
        needed = not cell.needs or (self.folder.runs / cell.needs / "results.json").is_file()
        return needed and not self.folder.busy(cell)

    def _start(self, cell: Cell) -> Process:
        run, recipe = self.folder.run_of(cell), self.folder.recipe_of(cell)
        return Attempt(TRAIN, run, recipe, self.options).start()

    def _stop(self, signum: int) -> None:
        """Passes the signal on, once: a second one would end a run without a checkpoint."""
        for process in self.running.values():
            if not process.stopped:
                process.stopped = True
                process.child.send_signal(signum)

    def _reap(self, stopping: bool) -> None:
        over = [cell for cell in self.cells if self._over(cell)]
        for cell in over:
            error = self.running.pop(cell.name).error()
            if error and stopping:
                continue
            if error:
                self._fail(cell, FAILED, error)
            else:
                self.progress.say(f"{cell.name}: {self.folder.accuracy(cell):.2%}")
        if over:
            self.after_each()

    def _over(self, cell: Cell) -> bool:
        return cell.name in self.running and self.running[cell.name].over()

    def _fail(self, cell: Cell, status: str, error: str) -> None:
        self.failures[cell.name] = (status, error)
        self.folder.write_failures(self.failures)
        self.progress.say(f"{cell.name}: {status}: {error}")
