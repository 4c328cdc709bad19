"""Where the numbers of a run go beside its CSV files: TensorBoard, and what a recipe asks for.

`[tracking] to` names one of TRACKERS, or a function of the user's own that gives a tracker.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe import references
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run.files import write_atomically
from dsr_kernels.training.run.folder import TRACKER
from dsr_kernels.training.trackers import TRACKERS, MLflow, Tracker, WandB

KEY = "tracking.to"


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
    values = recipes.values(recipe)
    if name in TRACKERS:
        try:
            return TRACKERS[name](run_id, folder, recipe.tracking.project, values)
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
    offered = {"run_id": run_id, "folder": folder, "recipe": values}
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
