"""The folder of one run: who may use it, what it was made with, where its parts lie.

RUN/recipe.toml  the resolved recipe        RUN/metrics.csv  one row an epoch
RUN/run.json     machine, versions, sizes   RUN/timings.csv  seconds and images/s an epoch
RUN/results.json once training is over      RUN/rewires.csv  one row a rewire
RUN/checkpoints  RUN/tensorboard            RUN/report.html, RUN/plots
RUN/.lock        held while a process       RUN/log.txt      what `dsr train` printed, where
                 trains the run                              `dsr experiment` started it

Where each format is defined: recipe.toml in recipe/schema.py; run.json and results.json in
start.py, with the sizes by `setup.describe`; the CSV columns in run/records.py; checkpoints in
run/checkpoint.py, the keys of state.pt in loop.py (`Trainer.save`), those of a sparse layer's
weight in nn/stored.py.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run import out_folder
from dsr_kernels.training.run.checkpoint import State
from dsr_kernels.training.run.files import Json, temporary, write_atomically
from dsr_kernels.training.run.out_folder import LOCK

LOG = "log.txt"  # what `dsr train` printed where `dsr experiment` started it; older than the run


class Run:
    """The folder of a run. `create` makes it, `open` finds it, `lock` keeps other processes out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = None
        self._made = False  # whether `create` made the folder itself

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> Run:
        """A new run in an empty or absent folder. Raises UsageError where anything is in it."""
        if (folder / "recipe.toml").exists():
            raise UsageError(
                f"--out: {folder} already holds a run; continue it with `{resume_command(folder)}` "
                "or name another folder"
            )
        made = out_folder.prepare(folder, "run", (LOG, temporary("recipe.toml")))
        run = cls(folder)
        run._made = made
        run.lock()
        write_atomically(folder / "recipe.toml", recipes.dump(recipe))
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in `folder`. Raises UsageError where there is none."""
        if not (folder / "recipe.toml").is_file():
            raise UsageError(f"{folder} holds no run (there is no recipe.toml in it)")
        return cls(folder)

    def lock(self) -> None:
        """Locks the run until the process ends. Raises UsageError if another one holds the lock."""
        self._lock = out_folder.lock(self.folder)
        if self._lock is None:
            raise UsageError(f"{self.folder}: another process is training this run")

    def withdraw(self) -> None:
        """Undoes `create`, unless something has been added since. The folder is then free again."""
        own = {"recipe.toml", LOCK}
        kept = own | {LOG}
        if self._lock is None or any(path.name not in kept for path in self.folder.iterdir()):
            return
        for name in own:
            (self.folder / name).unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # somebody may put a file there at this moment
                self.folder.rmdir()
        self._lock.close()
        self._lock = None

    def recipe(self) -> Recipe:
        return recipes.load(str(self.folder / "recipe.toml"))

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
        """The content of a JSON file of the run; None where there is no such file."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path}: not valid JSON: {error}") from None

    def write_json(self, name: str, content: Json) -> None:
        write_atomically(self.folder / name, json.dumps(content, indent=1) + "\n")


def resume_command(folder: Path) -> str:
    """The command that continues the run, for a message."""
    return f"dsr train --resume {shlex.quote(str(folder))}"
