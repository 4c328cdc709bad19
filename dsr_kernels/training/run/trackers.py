"""Where the numbers of a run go beside its CSV files: TensorBoard, and what a recipe asks for.

A tracker is whatever has the three methods of `Tracker`. `[tracking] to` names Weights & Biases,
MLflow, or a function of the user's own that gives one.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dsr_kernels.errors import UsageError, require
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe import references
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run.files import write_atomically
from dsr_kernels.training.run.folder import TRACKER

KEY = "tracking.to"


class Tracker(Protocol):
    """What a run tells its numbers to. All calls come from one process."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many iterations. A resumed run repeats those of its last."""

    def flush(self) -> None:
        """Called when a checkpoint is written: what was told so far should survive a kill."""

    def close(self) -> None:
        """The run ends, for now or for good."""


class WandB:
    """Weights & Biases. It keeps what a killed process told: numbers of iterations that a resumed
    run repeats are not told again.
    """

    def __init__(self, run_id: str, folder: Path, recipe: Recipe) -> None:
        wandb: Any = require("wandb", "tracker wandb", "wandb")
        self.run = wandb.init(
            id=run_id,
            resume="allow",
            name=folder.name,
            project=recipe.tracking.project or None,
            dir=str(folder),
            config=recipes.values(recipe),
        )

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=iteration)

    def flush(self) -> None:
        """It writes by itself."""

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """MLflow, at the place that its own variables name."""

    def __init__(self, run_id: str, folder: Path, recipe: Recipe) -> None:
        mlflow: Any = require("mlflow", "tracker mlflow", "mlflow")
        self.mlflow = mlflow
        if recipe.tracking.project:
            mlflow.set_experiment(recipe.tracking.project)
        known = mlflow.search_runs(filter_string=f"tags.dsr_run = '{run_id}'", output_format="list")
        if known:
            self.run = mlflow.start_run(run_id=known[0].info.run_id)
        else:
            self.run = mlflow.start_run(run_name=folder.name, tags={"dsr_run": run_id})
            mlflow.log_params({k: str(v)[:500] for k, v in recipes.values(recipe).items()})

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=iteration)

    def flush(self) -> None:
        """It writes at once."""

    def close(self, failed: bool = False) -> None:
        self.mlflow.end_run(status="FAILED" if failed else "FINISHED")


KINDS = {"wandb": WandB, "mlflow": MLflow}


class Guarded:
    """A tracker whose errors do not end the training: the first one is said, and the run goes on.
    The CSV files hold what such a tracker misses.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker, self._said = name, tracker, False

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self.tracker.scalars(iteration, values))

    def flush(self) -> None:
        self._try(self.tracker.flush)

    def close(self, failed: bool = False) -> None:
        """failed: the run has not come to its end. Trackers of a user's own are not told."""
        tracker = self.tracker
        if isinstance(tracker, WandB | MLflow):
            self._try(lambda: tracker.close(failed))
        else:
            self._try(tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if not self._said:
                print(
                    f"tracker {self.name} failed: {type(error).__name__}: {error}; the run goes on,"
                    " and its CSV files hold all numbers",
                    file=sys.stderr,
                )
            self._said = True


def open_trackers(folder: Path, recipe: Recipe) -> list[Guarded]:
    """The trackers that the recipe names, for the run in `folder`.

    Raises UsageError for one that is not installed, cannot be opened, or is none.
    """
    trackers: list[Guarded] = []
    try:
        for name in recipe.tracking.to:
            trackers.append(Guarded(name, _opened(name, _run_id(folder), folder, recipe)))
    except BaseException:
        for tracker in trackers:
            tracker.close(failed=True)
        raise
    return trackers


def _opened(name: str, run_id: str, folder: Path, recipe: Recipe) -> Tracker:
    if name in KINDS:
        try:
            return KINDS[name](run_id, folder, recipe)
        except UsageError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise UsageError(
                f"recipe: {KEY}: {name} cannot be opened: {type(error).__name__}: {first}; "
                f"`--set {KEY}=[]` trains without trackers"
            ) from None
    found = references.find(name, ())
    assert found is not None  # the recipe was checked
    offered = {"run_id": run_id, "folder": folder, "recipe": recipes.values(recipe)}
    tracker = references.call(references.imported(found, KEY), KEY, {}, offered)
    lacking = [m for m in ("scalars", "flush", "close") if not callable(getattr(tracker, m, None))]
    if lacking:
        raise UsageError(
            f"recipe: {KEY}: expected {name} to give an object with scalars, flush and close, got "
            f"{type(tracker).__name__} without {', '.join(lacking)}"
        )
    return tracker


def _run_id(folder: Path) -> str:
    """The name of the run for trackers, the same whenever it goes on."""
    path = folder / TRACKER
    if not path.is_file():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")
