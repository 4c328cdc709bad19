"""Submits the cells of a grid to a queue, and follows them until none is left that can run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from dsr_kernels.errors import SystemFailed
from dsr_kernels.experiments.attempt import Attempt, Options
from dsr_kernels.experiments.cluster.job import NOT_READY, CellJob
from dsr_kernels.experiments.cluster.queues import Queue
from dsr_kernels.experiments.folder import FAILED, SKIPPED, Failures, Folder
from dsr_kernels.experiments.grid import Cell
from dsr_kernels.experiments.progress import Progress
from dsr_kernels.training.signals import StopRequest

POLL_SECONDS = 5.0
MOST_IDS = 4  # of jobs that a line names
STEP_SECONDS = 0.1  # after which a Ctrl-C is heard


class Cluster:
    """Has the cells that are not done run as jobs. Calls `after_each` whenever one has ended.

    OUT/jobs.json says which job runs which cell, so that any process can follow them. Only what
    has no job there that is alive is submitted.
    """

    def __init__(
        self,
        folder: Folder,
        cells: list[Cell],
        options: Options,
        train: tuple[str, ...],
        after_each: Callable[[], None],
        queue: Queue,
    ) -> None:
        self.folder, self.options, self.train = folder, options, train
        self.after_each, self.queue, self.cells = after_each, queue, cells
        self.waiting = [cell for cell in cells if not folder.done(cell)]
        self.running: dict[str, str] = {}  # job by the name of the cell
        self.failures: Failures = {}  # of now; cells that failed earlier are tried again
        self._missing: dict[str, float] = {}  # since when a job seems to be over, by the cell
        self._came_too_early: set[str] = set()  # cells whose node did not see what they start from
        self._take_up()

    def announce(self) -> str:
        at_a_time = f", {self.queue.jobs} at a time" if self.queue.jobs else ""
        follows = f"{len(self.running)} of them jobs already" if self.running else ""
        left = len(self.waiting) + len(self.running)
        return ", ".join(filter(None, (f"{left} to run", follows))) + (
            f", as jobs of {self.queue.title}{at_a_time}"
        )

    def how_to_go_on(self) -> str:
        ids = list(self.running.values())
        if not ids:
            return "the same command continues it"
        return (
            f"{len(ids)} jobs go on without it; the same command follows them and submits what is "
            f"left; to cancel them: {self.queue.cancelling(ids)}"
        )

    def run(self) -> int:
        """Runs all cells that can run. Returns 0, or 128 + the signal that ended it early.

        Raises SystemFailed where the queue refuses a job. Jobs go on in either case.
        """
        self.folder.write_failures(self.failures)
        ended = len(self.cells) - len(self.waiting) - len(self.running)
        self.progress = Progress(len(self.cells), ended)
        try:
            with StopRequest("the jobs go on") as stop:
                while self.waiting or self.running:
                    self._submit()
                    self._look()
                    wake = time.monotonic() + POLL_SECONDS
                    while not stop.signum and self.running and time.monotonic() < wake:
                        time.sleep(min(STEP_SECONDS, POLL_SECONDS))
                    if stop.signum:
                        return stop.exit_code
                return 0
        finally:
            self.progress.close()

    def _take_up(self) -> None:
        """Follows the jobs of an earlier command, as far as they are alive."""
        recorded = self.folder.jobs()
        states = self.queue.states(list(recorded.values()))
        for cell in list(self.waiting):
            job_id = recorded.get(cell.name)
            if job_id is not None and states[job_id].alive:
                self.waiting.remove(cell)
                self.running[cell.name] = job_id
        # Of other cells, which another grid in this folder had, those that are alive stay known.
        present = {cell.name for cell in self.cells}
        alive = {name: job_id for name, job_id in recorded.items() if states[job_id].alive}
        self._others = {name: job_id for name, job_id in alive.items() if name not in present}
        for job_id in set(recorded.values()) - set(alive.values()):
            self.queue.forget(job_id)
        self._record()

    def _record(self) -> None:
        self.folder.write_jobs(self.queue.name, {**self._others, **self.running})

    def _submit(self) -> None:
        """Submits in waves: what is ready; what starts from that; and so on."""
        self._skip()
        while batch := self._next():
            before = [self.running[cell.needs] for cell in batch if cell.needs in self.running]
            jobs = [self._job(cell) for cell in batch]
            try:
                ids = self.queue.submit(jobs, list(dict.fromkeys(before)))
            except SystemFailed as error:
                raise SystemFailed(f"{error}; {self.how_to_go_on()}") from None
            for cell, job_id in zip(batch, ids, strict=True):
                self.waiting.remove(cell)
                self.running[cell.name] = job_id
            self._record()
            self.progress.say(f"submitted {len(batch)} cells: {_span(ids)}")

    def _skip(self) -> None:
        for cell in list(self.waiting):
            if cell.needs in self.failures:
                self.waiting.remove(cell)
                reason = f"it starts from {cell.needs} ({self.failures[cell.needs][0]})"
                self._fail(cell, SKIPPED, reason)

    def _next(self) -> list[Cell]:
        ready = [cell for cell in self.waiting if not cell.needs or self._is_done(cell.needs)]
        if not ready and self.queue.chains:
            ready = [cell for cell in self.waiting if cell.needs in self.running]
        if self.queue.most is None:
            return ready
        return ready[: max(0, self.queue.most - len(self.running))]

    def _job(self, cell: Cell) -> CellJob:
        run, recipe = self.folder.run_of(cell), self.folder.recipe_of(cell)
        needs = self.folder.runs / cell.needs if cell.needs else None
        return CellJob(Attempt(self.train, run, recipe, self.options), needs, self.queue.patience)

    def _is_done(self, name: str) -> bool:
        return (self.folder.runs / name / "results.json").is_file()

    def _look(self) -> None:
        """Sees which jobs are over, and what became of their cells."""
        outcomes = self.queue.outcomes(list(self.running.values()))
        silent = [job_id for job_id in self.running.values() if job_id not in outcomes]
        states = self.queue.states(silent)
        before = len(self.running)
        for cell in self.cells:
            job_id = self.running.get(cell.name)
            if job_id in outcomes:
                self._over(cell, outcomes[job_id])
            elif job_id is not None and not states[job_id].alive:
                self._vanished(cell, states[job_id].words)
            else:
                self._missing.pop(cell.name, None)
        words = Counter(states[job_id].words for job_id in silent)
        shown = [f"{count} {word}" for word, count in words.items()]
        self.progress.show(len(self.cells) - len(self.waiting) - len(self.running), shown)
        if len(self.running) < before:
            self.after_each()

    def _over(self, cell: Cell, error: str) -> None:
        """Its job has said what it ended with."""
        if error == NOT_READY and cell.name not in self._came_too_early:
            self._came_too_early.add(cell.name)
            self._forget(cell)
            self.waiting.append(cell)  # to be skipped, or to be submitted once more
        elif error:
            self._forget(cell)
            self._fail(cell, FAILED, error)
        else:
            self._vanished(cell, "ended well, but results.json is not there")

    def _vanished(self, cell: Cell, how: str) -> None:
        """Its job is over. What it wrote may be seen here a little later, or not at all."""
        if self._is_done(cell.name):
            self._forget(cell)
            self.progress.say(f"{cell.name}: {self.folder.accuracy(cell):.2%}")
            return
        now = time.monotonic()
        if now - self._missing.setdefault(cell.name, now) >= self.queue.patience:
            job_id = self._forget(cell)
            self._fail(cell, FAILED, f"job {job_id}: {how}; see {self.queue.output(job_id)}")

    def _forget(self, cell: Cell) -> str:
        """Takes the job of the cell, which is over, off the list; returns its id."""
        job_id = self.running.pop(cell.name)
        self._missing.pop(cell.name, None)
        self._record()
        self.queue.forget(job_id)
        return job_id

    def _fail(self, cell: Cell, status: str, error: str) -> None:
        self.failures[cell.name] = (status, error)
        self.folder.write_failures(self.failures)
        self.progress.say(f"{cell.name}: {status}: {error}")


def _span(ids: list[str]) -> str:
    """Tasks of an array are numbered one after the other; other ids say nothing of their number."""
    if len(ids) == 1:
        return f"job {ids[0]}"
    if len(ids) <= MOST_IDS:
        return f"jobs {', '.join(ids)}"
    if "_" in ids[0]:
        return f"jobs {ids[0]} to {ids[-1]}"
    return f"jobs {', '.join(ids[:MOST_IDS])} and {len(ids) - MOST_IDS} more"
