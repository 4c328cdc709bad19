"""One attempt at a cell: `dsr train` as a process, its log, and what it ended with.

A job on a cluster carries these classes with it (`cluster.queues`), so that it need not import
torch. What they use of other modules of the package are values, not classes or functions.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dsr_kernels.training.run.folder import LOG
from dsr_kernels.training.run.out_folder import open_plain

LITTLE_ROOM = 2**16  # bytes that are free on a disk which is as good as full
PR_SET_PDEATHSIG = 1  # of prctl(2)


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
            threads = max(1, cores() // self.jobs)
        pairs = {"--threads": threads, "--data-dir": self.data_dir, "--device": self.device}
        given = ((name, str(value)) for name, value in pairs.items() if value is not None)
        return [part for pair in given for part in pair]


def cores() -> int:
    """How many cores this process may use. Not every cluster binds a job to those it was given."""
    bound = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(bound, int(given)) if given.isdecimal() else bound


@dataclass
class Process:
    """One `dsr train`. Once it is over, `error` says what it ended with: "" for success."""

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


@dataclass(frozen=True)
class Attempt:
    """What one cell is started with: a command in front of the arguments, its run, its recipe."""

    train: tuple[str, ...]
    run: Path
    recipe: Path
    options: Options

    def start(self) -> Process:
        """Begins the run, or continues it where it has begun."""
        self.run.mkdir(parents=True, exist_ok=True)
        which = ["--resume", str(self.run)]
        if not (self.run / "recipe.toml").is_file():
            which = ["--recipe", str(self.recipe), "--out", str(self.run)]
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            """Called in the child, which gets SIGTERM and saves a checkpoint when we die.

            Clusters warn every process of a job by a user's signal, whose default is to kill.
            """
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

        to_append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(open_plain(self.run / LOG, to_append), "ab") as log:
            begin = log.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [*self.train, *which, *self.options.of(self.run)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that a Ctrl-C reaches it once, from here
                preexec_fn=prepare,
            )
        return Process(child, self.run / LOG, begin)
