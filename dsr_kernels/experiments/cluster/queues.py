"""Where jobs wait and run: Slurm, or this machine where one only tries the way there."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dsr_kernels.errors import SystemFailed, UsageError, require
from dsr_kernels.experiments import attempt
from dsr_kernels.experiments.cluster import job as cell_job
from dsr_kernels.experiments.cluster import parameters as given
from dsr_kernels.experiments.cluster.job import CellJob
from dsr_kernels.training.run import out_folder

WEEK = 7 * 24 * 60  # minutes
COMMANDS = ("sbatch", "srun", "squeue")  # without which nothing can be submitted or followed
MOST_TIMEOUTS = 100  # how often submitit requeues a job that meets its time limit
ALL = 10**9  # tasks of an array at a time: as many as it has, where submitit would say 256
CARRIED = (attempt, cell_job, out_folder)  # modules whose classes and functions a job carries
ENDS = {  # states of Slurm in which a job is over
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "cancelled",
    "COMPLETED": "ended without a result",
    "DEADLINE": "met its deadline",
    "FAILED": "failed without a result",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted and not requeued",
    "REVOKED": "revoked",
    "TIMEOUT": "met its time limit",
}


class State(NamedTuple):
    """Of a job: whether it waits, runs or will run again, and its state in words."""

    alive: bool
    words: str


class Queue(ABC):
    """Takes jobs and tells of them; each has an id that any process can ask for."""

    name: str  # as in --launcher
    title: str
    most: int | None = None  # jobs at a time, where the queue itself does not see to it
    chains: bool  # whether a job can be submitted that has to wait for another
    patience: float  # seconds after which a file that a job wrote is seen by all

    def __init__(self, folder: Path, jobs: int | None) -> None:
        """`jobs` may run at a time; None leaves that to the queue."""
        self.folder, self.jobs = folder, jobs

    @abstractmethod
    def submit(self, jobs: list[CellJob], after: list[str]) -> list[str]:
        """The ids of the jobs, which begin once those with the ids `after` are over."""

    @abstractmethod
    def states(self, ids: list[str]) -> dict[str, State]:
        """The states of all these jobs."""

    @abstractmethod
    def cancelling(self, ids: list[str]) -> str:
        """The command that cancels these jobs."""

    def outcomes(self, ids: list[str]) -> dict[str, str]:
        """What went wrong, "" for nothing, by the id of each job that has said so."""
        try:  # the list of names is fresh where a network file system may still deny a file
            present = set(os.listdir(self.folder))
        except FileNotFoundError:
            return {}
        told = [job_id for job_id in ids if self._result(job_id).name in present]
        found = {job_id: self._read(job_id) for job_id in told}
        return {job_id: error for job_id, error in found.items() if error is not None}

    def forget(self, job_id: str) -> None:
        """Removes what a job that is over has left, for the number may come again."""
        self._result(job_id).unlink(missing_ok=True)

    def output(self, job_id: str) -> Path:
        """What the job itself printed on stderr; `dsr train` has its own log."""
        return self.folder / f"{job_id}_0_log.err"

    def _result(self, job_id: str) -> Path:
        return self.folder / f"{job_id}_0_result.pkl"

    def _read(self, job_id: str) -> str | None:
        try:
            with self._result(job_id).open("rb") as file:
                outcome, text = pickle.load(file)  # "success" and its value; "error" and a trace
        except (OSError, EOFError, pickle.UnpicklingError):  # it is just being put there
            return None
        return text if outcome == "success" else text.strip().splitlines()[-1]


class SlurmQueue(Queue):
    """Slurm, by submitit. sacct tells the states; what squeue lists is not over."""

    name, title, chains = "slurm", "Slurm", True
    patience = 60.0  # what network file systems keep of a folder before they look again

    def __init__(self, folder: Path, parameters: dict[str, Any], jobs: int | None) -> None:
        """Raises UsageError for wrong parameters, or without submitit or Slurm; writes nothing."""
        super().__init__(folder, jobs)
        self.submitit = require("submitit", "--launcher slurm", "cluster")
        if "time" not in parameters:
            raise UsageError(
                "--slurm time: expected, in minutes: --slurm time=240 gives a cell four hours "
                "before it saves a checkpoint and queues again"
            )
        if "%" in str(folder):
            raise UsageError(f"--out: {folder}: Slurm gives % in a path a meaning of its own")
        for command in COMMANDS:
            if shutil.which(command) is None:
                raise UsageError(
                    f"--launcher slurm: {command} is not on the PATH; expected a login node of a "
                    "Slurm cluster (--launcher local tries the same on this machine)"
                )
        self.executor = self.submitit.SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
        named = {"job_name": f"dsr-{folder.parent.name}", **parameters}
        named["array_parallelism"] = jobs or ALL
        try:
            self.executor.update_parameters(**named)
        except (ValueError, TypeError) as error:
            raise given.refused(parameters, error) from None
        self.registered: dict[str, Any] = {}  # with submitit, which asks for all in one call

    def submit(self, jobs: list[CellJob], after: list[str]) -> list[str]:
        # Not afterok: a job whose cell cannot start says so, where Slurm would hold it for ever.
        waits = "afterany:" + ":".join(after) if after else None
        self.executor.update_parameters(dependency=waits)
        said = io.StringIO()  # submitit repeats there what it raises
        try:
            with _carrying(), contextlib.redirect_stderr(said):
                submitted = self.executor.submit_array(jobs)
        except (RuntimeError, OSError) as error:
            raise SystemFailed(f"sbatch refuses {len(jobs)} cells: {error}") from None
        return [job.job_id for job in submitted]

    def states(self, ids: list[str]) -> dict[str, State]:
        for job_id in ids:
            if job_id not in self.registered:  # all of them first: then sacct is asked once
                self.registered[job_id] = self.submitit.SlurmJob(self.folder, job_id)
        watcher = self.submitit.SlurmJob.watcher
        with _quiet():
            # As in "CANCELLED by 1000".
            words = {job_id: watcher.get_state(job_id).split(" ")[0] for job_id in ids}
        found = {job_id: State(True, word.lower()) for job_id, word in words.items()}
        over = [job_id for job_id in ids if words[job_id] in ENDS or words[job_id] == "UNKNOWN"]
        if not over:
            return found
        listed = self._listed()
        for job_id in over:
            word = words[job_id]
            if listed is not None and job_id in listed:
                if word in ENDS:
                    watcher.clear()  # it was requeued, and submitit would not ask again
                found[job_id] = State(True, "queued")
            elif word in ENDS:
                found[job_id] = State(False, f"{ENDS[word]} (Slurm: {word})")
            elif listed is not None:
                found[job_id] = State(False, "unknown to sacct and squeue")
        return found

    def _listed(self) -> set[str] | None:
        """The ids of our jobs that wait or run; None where squeue does not tell."""
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        # The format of an array's task is ARRAY_TASK, of another job its number.
        return set(done.stdout.split()) if done.returncode == 0 else None

    def cancelling(self, ids: list[str]) -> str:
        return f"scancel {' '.join(ids)}"


class LocalQueue(Queue):
    """This machine, by submitit: jobs are processes that outlive the command."""

    name, title, chains = "local", "this machine", False
    patience = 1.0

    def __init__(self, folder: Path, parameters: dict[str, Any], jobs: int) -> None:
        """Raises UsageError for wrong parameters, or without submitit; writes nothing."""
        super().__init__(folder, jobs)
        self.submitit = require("submitit", "--launcher local", "cluster")
        given.check_local(parameters)
        self.most = jobs
        self.parameters = {"timeout_min": parameters.get("time", WEEK)}
        self.parameters |= {key: value for key, value in parameters.items() if key != "time"}
        self.started: list[Any] = []  # submitit's jobs, kept so that none is left a zombie

    def submit(self, jobs: list[CellJob], after: list[str]) -> list[str]:
        executor = self.submitit.LocalExecutor(self.folder, max_num_timeout=MOST_TIMEOUTS)
        executor.update_parameters(**self.parameters)
        with _carrying(), _deaf_children():
            submitted = executor.submit_array(jobs)
        self.started += submitted
        return [job.job_id for job in submitted]

    def states(self, ids: list[str]) -> dict[str, State]:
        for job in self.started:
            job.get_info()  # polls the process
        running, gone = State(True, "running"), State(False, "ended without a result")
        return {job_id: running if self._runs(job_id) else gone for job_id in ids}

    def _runs(self, job_id: str) -> bool:
        """Whether the process of this number is still submitit's, in this folder."""
        try:
            words = Path("/proc", job_id, "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return b"submitit.local._local" in words and os.fsencode(self.folder) in words

    def cancelling(self, ids: list[str]) -> str:
        return f"kill {' '.join(ids)}"


@contextlib.contextmanager
def _carrying() -> Iterator[None]:
    """What is pickled within carries the code of CARRIED, instead of its name."""
    cloudpickle = require("cloudpickle", "--launcher", "cluster")
    for module in CARRIED:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in CARRIED:
            cloudpickle.unregister_pickle_by_value(module)


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start within do not hear the terminal: its Ctrl-C, its end."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps away from the terminal what sacct says where a cluster does not keep accounts."""
    sys.stderr.flush()
    former = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(former, 2)
        os.close(former)
        os.close(nowhere)
