"""Runs the cells of a grid as processes, some at a time, until no cell is left that can run."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsr_kernels.experiments.folder import FAILED, SKIPPED, Failures, Folder
from dsr_kernels.experiments.grid import Cell
from dsr_kernels.experiments.progress import Progress
from dsr_kernels.training.run.folder import LOG
from dsr_kernels.training.signals import StopRequest

POLL_SECONDS = 0.1
LITTLE_ROOM = 2**16  # bytes that are free on a disk which is as good as full
# Starts this very package. A source tree in the current folder would come before it otherwise.
_START = (
    f"import sys; sys.path[0] = {str(Path(__file__).parents[2])!r}; "
    "from dsr_kernels.cli import main; sys.exit(main())"
)
TRAIN = (sys.executable, "-c", _START, "train", "--quiet", "--no-report")
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Options:
    """How cells run.

    Where `threads` is None, the jobs share the cores, and a run keeps the number it began with.
    """

    jobs: int = 1
    threads: int | None = None
    data_dir: Path | None = None
    device: str | None = None

    def of(self, run: Path) -> list[str]:
        """These options as arguments of `dsr train` for the run in that folder."""
        threads = self.threads
        if threads is None and not (run / "run.json").is_file():  # which says what it began with
            threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        pairs = {"--threads": threads, "--data-dir": self.data_dir, "--device": self.device}
        given = ((name, str(value)) for name, value in pairs.items() if value is not None)
        return [part for pair in given for part in pair]


@dataclass
class Process:
    """One `dsr train`. Once it is over, `error` says what it ended with: "" for success."""

    cell: Cell
    child: subprocess.Popen
    log: Path
    log_begin: int
    stopped: bool = False  # whether it has been sent a signal to stop

    def over(self) -> bool:
        return self.child.poll() is not None

    def error(self) -> str:
        code = self.child.returncode
        if code == 0:
            return ""
        with self.log.open("rb") as file:
            file.seek(self.log_begin)
            lines = file.read().decode("utf-8", "replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        own = [line.removeprefix("dsr: ") for line in lines if line.startswith("dsr: ")]
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        if not own and shutil.disk_usage(self.log.parent).free < LITTLE_ROOM:
            return f"exit code {code}; there was no room on the disk to say why in {self.log}"
        return (own or lines or [f"exit code {code}"])[-1]


class Runner:
    """Runs the cells that are not done. Calls `after_each` whenever a cell has ended."""

    def __init__(
        self, folder: Folder, cells: list[Cell], options: Options, after_each: Callable[[], None]
    ) -> None:
        self.folder, self.options, self.after_each = folder, options, after_each
        self.cells = cells
        self.waiting = [cell for cell in cells if not folder.done(cell)]
        self.running: list[Process] = []
        self.failures: Failures = {}  # of now; cells that failed earlier are tried again

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
                    self.progress.show(ended, [process.cell.name for process in self.running])
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
                self.running.append(self._start(cell))

    def _ready(self, cell: Cell) -> bool:
        needed = not cell.needs or (self.folder.runs / cell.needs / "results.json").is_file()
        return needed and not self.folder.busy(cell)

    def _start(self, cell: Cell) -> Process:
        run = self.folder.run_of(cell)
        run.mkdir(parents=True, exist_ok=True)
        which = ["--resume", str(run)]
        if not self.folder.begun(cell):
            which = ["--recipe", str(self.folder.recipe_of(cell)), "--out", str(run)]
        with (run / LOG).open("ab") as log:
            begin = log.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [*TRAIN, *which, *self.options.of(run)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that a Ctrl-C reaches it once, from here
                preexec_fn=_end_with_parent,
            )
        return Process(cell, child, run / LOG, begin)

    def _stop(self, signum: int) -> None:
        """Passes the signal on, once: a second one would end a run without a checkpoint."""
        for process in self.running:
            if not process.stopped:
                process.stopped = True
                process.child.send_signal(signum)

    def _reap(self, stopping: bool) -> None:
        over = [process for process in self.running if process.over()]
        for process in over:
            self.running.remove(process)
            error = process.error()
            if error and stopping:
                continue
            if error:
                self._fail(process.cell, FAILED, error)
            else:
                self.progress.say(f"{process.cell.name}: {self.folder.accuracy(process.cell):.2%}")
        if over:
            self.after_each()

    def _fail(self, cell: Cell, status: str, error: str) -> None:
        self.failures[cell.name] = (status, error)
        self.folder.write_failures(self.failures)
        self.progress.say(f"{cell.name}: {status}: {error}")


def _end_with_parent() -> None:
    """Called in the child. It gets SIGTERM, and saves a checkpoint, when the experiment dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
