"""`--launcher`: how the cells of a grid run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dsr_kernels.errors import UsageError
from dsr_kernels.experiments import runner
from dsr_kernels.experiments.attempt import Options
from dsr_kernels.experiments.folder import Folder
from dsr_kernels.experiments.grid import Cell

PROCESSES, SLURM, LOCAL = "processes", "slurm", "local"


class Launcher(Protocol):
    """Runs the cells of a grid that are not done, each once, after the one it starts from."""

    def announce(self) -> str:
        """How many cells are to run, and how."""

    def run(self) -> int:
        """Runs all cells that can run. Returns 0, or 128 + the signal that ended it early."""

    def how_to_go_on(self) -> str:
        """What continues after such a signal, and what the user can do."""


class Choice:
    """The launcher that the arguments ask for, checked before there is a folder."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        """Raises UsageError for wrong options, and for a cluster that is not here."""
        self.name = options.launcher
        self.options, self.queue = _options(options), None
        if options.slurm and self.name == PROCESSES:
            raise UsageError("--slurm: expected with --launcher slurm, got it with processes")
        if self.name == PROCESSES:
            return
        from dsr_kernels.experiments.cluster import parameters, queues

        kind = queues.SlurmQueue if self.name == SLURM else queues.LocalQueue
        jobs = options.jobs if self.name == SLURM else self.options.jobs
        self.queue = kind(out.resolve() / "jobs", parameters.parse(options.slurm), jobs)

    def open(self, folder: Folder, cells: list[Cell], after_each: Callable[[], None]) -> Launcher:
        """Raises UsageError where another launcher's jobs may still run the folder's cells."""
        launcher, jobs = folder.launcher(), folder.jobs()
        left = [jobs[cell.name] for cell in cells if cell.name in jobs and not folder.done(cell)]
        if left and launcher != self.name:
            raise UsageError(
                f"--launcher: jobs of {launcher} may still run cells of {folder.path} "
                f"({', '.join(left[:3])}{', ...' if left[3:] else ''}); continue with --launcher "
                f"{launcher}, or cancel them and remove {folder.path / 'jobs.json'}"
            )
        if self.queue is None:
            return runner.Runner(folder, cells, self.options, after_each)
        from dsr_kernels.experiments.cluster.launcher import Cluster

        return Cluster(folder, cells, self.options, runner.TRAIN, after_each, self.queue)


def _options(options: argparse.Namespace) -> Options:
    """A job of Slurm has its cores for itself; elsewhere the jobs share this machine's."""
    jobs = 1 if options.launcher == SLURM else options.jobs or 1
    data_dir = options.data_dir
    if data_dir is not None and options.launcher != PROCESSES:
        data_dir = data_dir.resolve()
    return Options(jobs, options.threads, data_dir, options.device)
