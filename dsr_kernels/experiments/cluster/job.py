"""What a job of a cluster does: it trains one cell, and saves and comes again when told to go."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dsr_kernels.experiments.attempt import Attempt, Process
from dsr_kernels.training.run.out_folder import is_locked

POLL_SECONDS = 0.1
STOPPED_SECONDS = 120.0  # how long a job that was told to stop waits for what the cluster does next
NOT_READY = "what it starts from is not done"


class CellJob:
    """Trains a cell when it is called; submitit calls `checkpoint` before it requeues the job.

    A cluster that wants the job to go sends SIGTERM, or the signal that submitit asks for (USR2),
    or one after the other. On either, `dsr train` saves a checkpoint and ends. Only the latter
    requeues, for SIGTERM comes before a cancellation, too.
    """

    def __init__(self, attempt: Attempt, needs: Path | None, patience: float) -> None:
        """`needs` is the run it starts from, whose results may be seen here `patience` s late."""
        self.attempt, self.needs, self.patience = attempt, needs, patience
        self.process: Process | None = None
        self.told_to_stop = False

    def __call__(self) -> str:
        """Trains, and returns what went wrong: "" for success."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if self.needs is not None and not self._appears(self.needs):
            return NOT_READY
        # An older job of this cell may still be on its way out.
        while is_locked(self.attempt.run) and not self.told_to_stop:
            time.sleep(POLL_SECONDS)
        if _done(self.attempt.run):
            return ""
        if not self.told_to_stop:
            self.process = self.attempt.start()
            if self.told_to_stop:  # since the line above has begun
                self._stop()
            while not self.process.over():
                time.sleep(POLL_SECONDS)
        return self._ended()

    def checkpoint(self) -> Any:
        """Ends the training with a checkpoint; returns what submitit is to run the next time."""
        from submitit.helpers import DelayedSubmission

        self.told_to_stop = True
        self._stop()
        if self.process is not None:
            # Not by `Popen.wait`: this is called by a signal that may have come in its middle.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(CellJob(self.attempt, self.needs, self.patience))

    def _on_sigterm(self, _signum: int, _frame: object) -> None:
        self.told_to_stop = True
        self._stop()

    def _stop(self) -> None:
        """Most clusters have told all processes of the job; `dsr train` may be told twice."""
        if self.process is not None and self.process.child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.child.pid, signal.SIGTERM)

    def _ended(self) -> str:
        code = None if self.process is None else self.process.child.returncode
        if code == 0:
            return ""
        if self.told_to_stop:
            time.sleep(STOPPED_SECONDS)  # a requeue, or the end by SIGKILL, interrupts this
        if code == -signal.SIGKILL:
            sys.exit(128 + signal.SIGKILL)  # without a result: the cluster knows better why
        return "stopped before it began" if self.process is None else self.process.error()

    def _appears(self, run: Path) -> bool:
        deadline = time.monotonic() + self.patience
        while not _done(run):
            if self.told_to_stop or time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


def _done(run: Path) -> bool:
    return (run / "results.json").is_file()
