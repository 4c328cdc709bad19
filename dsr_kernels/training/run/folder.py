"""The folder of one run: who may use it, what it was made with, where its parts lie.

RUN/recipe.toml  the resolved recipe        RUN/metrics.csv  one row an epoch
RUN/run.json     machine, versions, sizes   RUN/timings.csv  seconds and images/s an epoch
RUN/results.json once training is over      RUN/rewires.csv  one row a rewire
RUN/checkpoints  RUN/tensorboard            RUN/report.html, RUN/plots
RUN/.lock        held while a process       RUN/log.txt      what `dsr train` printed, where
                 trains the run                              `dsr experiment` started it
RUN/.job         the job of torchrun that made it, which alone goes on with it without --resume
RUN/.tracker     the name of the run for trackers such as wandb, where it has any

Where each format is defined: recipe.toml in recipe/schema.py; run.json and results.json in
start.py, with the sizes by `setup.describe`; the CSV columns in run/records.py; checkpoints in
run/checkpoint.py, the keys of state.pt in parts.py (`Parts._write_checkpoint`), those of a sparse
layer's weight in nn/stored.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from dsr_kernels.errors import SystemFailed, UsageError, check_path, in_words
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run import out_folder, torchrun
from dsr_kernels.training.run.checkpoint import Checkpoints, State, recipe_copy
from dsr_kernels.training.run.files import Json, temporary, write_atomically, write_file
from dsr_kernels.training.run.out_folder import LOCK

PLOTS = "plots"
LOG = "log.txt"  # what `dsr train` printed where `dsr experiment` started it; older than the run
JOB = ".job"
TRACKER = ".tracker"
# What is written to in place, or as files in it.
WRITTEN = (
    "metrics.csv",
    "timings.csv",
    "rewires.csv",
    "checkpoints",
    "tensorboard",
    PLOTS,
    "wandb",
)
CHECKSUM = "sha256"  # key of a JSON file: of all else in it
FULL = {errno.ENOSPC, errno.EDQUOT}  # a full disk, or a user's share of it


class Run:
    """The folder of a run. `create` makes it, `open` finds it, `lock` keeps other processes out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = None
        self._made: list[Path] = []  # folders that `create` made

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, job: str = "") -> Run:
        """A new run in an empty or absent folder. Raises UsageError where anything is in it.

        job: names the job of torchrun that makes it; "" without.
        """
        out_folder.check(folder)
        if (folder / "recipe.toml").exists():
            raise UsageError(
                f"--out: {folder} already holds a run; continue it with `{resume_command(folder)}` "
                "or name another folder"
            )
        run = cls(folder)
        run._made = out_folder.prepare(folder, "run", (LOG, JOB, temporary("recipe.toml")))
        try:
            run.lock()
            (folder / JOB).unlink(missing_ok=True)
            if job:
                write_file(folder / JOB, job.encode())
            write_atomically(folder / "recipe.toml", recipes.dump(recipe))
        except BaseException:
            run.withdraw()
            raise
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in `folder`. Raises UsageError where there is none."""
        check_path(folder / "recipe.toml", "the run")
        if not (folder / "recipe.toml").is_file():
            raise UsageError(f"{folder} holds no run (there is no recipe.toml in it)")
        return cls(folder)

    @staticmethod
    def is_of(job: str, folder: Path) -> bool:
        """Whether the run in `folder` is one that this job of torchrun has made."""
        if not job or not (folder / "recipe.toml").is_file():
            return False
        with contextlib.suppress(OSError, ValueError):
            return (folder / JOB).read_text() == job
        return False

    def lock(self, patience: float = 0.0) -> None:
        """Locks the run until `release`, or the process ends, however it does.

        Raises UsageError if another process holds the lock, for longer than so many seconds, and
        for links in the place of what the run writes.
        """
        end = time.monotonic() + patience
        self._lock = out_folder.lock(self.folder)
        while self._lock is None and time.monotonic() < end:
            time.sleep(0.1)
            self._lock = out_folder.lock(self.folder)
        if self._lock is None:
            raise UsageError(f"{self.folder}: another process is training this run")
        out_folder.refuse_links(self.folder, WRITTEN)

    def withdraw(self) -> None:
        """Undoes `create`, unless something has been added since. The folder is then free again."""
        own = {"recipe.toml", temporary("recipe.toml"), LOCK, JOB, TRACKER}
        if self._lock is not None:  # else another process may train here
            if {path.name for path in self.folder.iterdir()} - own - {LOG}:
                return
            for name in own:
                (self.folder / name).unlink(missing_ok=True)
        out_folder.remove(self._made)
        self.release()

    def release(self) -> None:
        """Gives the lock back, where this process holds it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def recipe(self, overrides: list[str] = (), seed: int | None = None) -> Recipe:
        """The run's recipe. Raises UsageError where recipe.toml has changed since the checkpoint.

        `overrides` and `seed` are as in `recipes.load`.
        """
        self._check_recipe()
        return recipes.load(str(self.folder / "recipe.toml"), overrides, seed, of_run=True)

    def _check_recipe(self) -> None:
        path, kept = self.folder / "recipe.toml", recipe_copy(self.folder / "checkpoints")
        if kept is None or path.read_bytes() == kept[1]:
            return
        way_out = f"the checkpoint's own copy is {kept[0]}: put it back to go on"
        try:
            own, theirs = (recipes.load(str(p), of_run=True) for p in (path, kept[0]))
        except UsageError as error:
            place = "" if str(path) in str(error) else f"{path}: "
            raise UsageError(f"{place}{error}; {way_out}") from None
        if found := recipes.difference(own, theirs):
            raise UsageError(
                f"{path}: the checkpoint was made with another recipe than recipe.toml: {found}; "
                f"{way_out}"
            )
        raise UsageError(f"{path}: damaged: it is not what the run began with; {way_out}")

    def check_state(self, state: State, recipe: Recipe, data: str) -> None:
        """Raises UsageError for a checkpoint of another recipe or other data (a fingerprint)."""
        if state.get("data") != data:
            raise UsageError(
                f"{self.folder}: the checkpoint was trained on other data: {state.get('data')}, "
                f"found {data}"
            )
        where = f"{self.folder}: recipe in the checkpoint"
        theirs = recipes.parse_text(state.get("recipe", ""), where)
        if found := recipes.difference(recipe, theirs):
            raise UsageError(
                f"{self.folder}: the checkpoint was made with another recipe than recipe.toml: "
                f"{found}"
            )

    def read_json(self, name: str) -> Json | None:
        """The content of a JSON file of the run; None where there is no such file.

        Raises UsageError for a damaged one. A file without checksum, of an older version, is taken
        as it is.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        way_out = (
            f"put a copy of it in its place, or remove it: `{resume_command(self.folder)}` writes "
            "it again"
        )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            expected = content.pop(CHECKSUM, None)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise UsageError(f"{path}: not valid JSON: {error}; {way_out}") from None
        others = {key: value for key, value in content.items() if not _is_sum(value)}
        misnamed = expected is None and _checksum(others) in content.values()
        if misnamed or expected not in (None, _checksum(content)):
            raise UsageError(
                f"{path}: damaged, or changed by hand: it does not match its {CHECKSUM}; {way_out}"
            )
        return content

    def write_json(self, name: str, content: Json) -> None:
        whole = {**content, CHECKSUM: _checksum(content)}
        write_atomically(self.folder / name, json.dumps(whole, indent=1) + "\n")

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Raises SystemFailed where the system refuses to write the run, as a full disk does.

        The message names the file, says what is kept, and how to go on.
        """
        try:
            yield
        except BrokenPipeError:  # nobody reads what is printed: the command's affair
            raise
        except OSError as error:
            remedy = (
                "make room, then go on" if error.errno in FULL else "once that is mended, go on"
            )
            raise SystemFailed(
                f"{in_words(error)}; {self.kept()}; {remedy} with: {resume_command(self.folder)}"
            ) from None

    def kept(self) -> str:
        """What the folder keeps if the run ends at this moment, for a message."""
        if not (self.folder / "recipe.toml").is_file():
            return f"the folder {self.folder} is gone"
        if (self.folder / "results.json").is_file():
            return f"{self.folder} keeps the finished run; its report is not written"
        steps = Checkpoints(self.folder / "checkpoints").steps()
        if not steps:
            return f"{self.folder} keeps the recipe, there is no checkpoint yet"
        return f"{self.folder} keeps the checkpoint {steps[-1].name}"


def _is_sum(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _checksum(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()


def resume_command(folder: Path) -> str:
    """The command that continues the run, on as many processes, for a message."""
    return f"{torchrun.command()} train --resume {shlex.quote(str(folder))}"
