"""What a run writes while it trains: metrics, timings and rewires, as CSV and for TensorBoard.

All of them resume exactly.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dsr_kernels.errors import UsageError
from dsr_kernels.rewiring import RewireReport
from dsr_kernels.training.run.checkpoint import STATE, State
from dsr_kernels.training.run.csv_files import CsvLog, read_csv, verify
from dsr_kernels.training.run.files import naming
from dsr_kernels.training.run.stored_state import WrongState, check_keys
from dsr_kernels.training.run.trackers import Guarded

METRICS = (
    *("epoch", "iteration", "lr", "train_loss", "train_accuracy"),
    *("validation_loss", "validation_accuracy", "validation_top5"),
    *("test_loss", "test_accuracy", "test_top5", "nonzeros"),
)
WITHOUT_TOP5 = tuple(name for name in METRICS if not name.endswith("top5"))
TIMINGS = ("epoch", "iteration", "train_seconds", "images", "images_per_second")
REPORTED = ("threshold", "next_threshold", "pruned", "grown")  # of a RewireReport
REWIRES = ("iteration", "epoch", *REPORTED, "nonzeros")


class Events:
    """TensorBoard scalars. Does nothing where tensorboard is not installed."""

    def __init__(self, folder: Path, begin: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.writer = None
            return
        self.folder = folder
        _hold_back_tracebacks()
        # purge_step hides what an earlier, killed process wrote from iteration `begin` on.
        with naming(folder):
            self.writer = SummaryWriter(str(folder), purge_step=begin)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            with naming(self.folder):
                for name, value in values.items():
                    self.writer.add_scalar(name, value, iteration)

    def flush(self) -> None:
        if self.writer is not None:
            with naming(self.folder):
                self.writer.flush()

    def close(self, failed: bool = False) -> None:
        if self.writer is not None:
            with naming(self.folder):
                self.writer.close()


@functools.cache
def _hold_back_tracebacks() -> None:
    """Once: of TensorBoard's thread, whose errors the next call of its writer raises again."""
    usual = threading.excepthook

    def on_error(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            usual(error)

    threading.excepthook = on_error


def _epoch_scalars(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {k: row.get(k) for k in METRICS[2:]}


def _timing_scalars(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {"images_per_second": row["images_per_second"]}


def _rewire_scalars(row: Mapping[str, Any]) -> dict[str, float | None]:
    layers = {k.replace(":", "/", 1): v for k, v in row.items() if k.startswith("nonzeros:")}
    names = ("threshold", "pruned", "grown", "exploration")
    return {**{f"rewire/{k}": row.get(k) for k in names}, **layers}


class Records:
    """All records of one run. `lengths` and `sums` are their state for the checkpoint.

    saved: state of the checkpoint that the run goes on from; None for a new run.
    iteration: that of the checkpoint.

    A file that is gone begins anew; `begun` has the names of those that did. Raises UsageError, and
    changes no file, where one is not what the checkpoint knows.
    """

    def __init__(
        self,
        folder: Path,
        layers: list[str],
        saved: State | None = None,
        iteration: int = 0,
        exploration: bool = False,
        top5: bool = False,
        trackers: Sequence[Guarded] = (),
    ) -> None:
        layer_columns = tuple(f"nonzeros:{name}" for name in layers)
        columns = {
            "metrics": METRICS if top5 else WITHOUT_TOP5,
            "timings": TIMINGS,
            "rewires": REWIRES + ("exploration",) * exploration + layer_columns,
        }
        lengths = {} if saved is None else dict(saved["lengths"])
        for name in [] if saved is None else check(folder, saved):
            print(f"{folder / name}.csv is gone: it begins anew, its former rows are lost")
            del lengths[name]
        self.begun = [name for name in columns if name not in lengths]
        self.logs = {
            name: CsvLog(folder / f"{name}.csv", names, lengths.get(name))
            for name, names in columns.items()
        }
        self.trackers = [Events(folder / "tensorboard", iteration), *trackers]
        if saved is not None:
            self._repeat_events(folder, iteration)

    def _repeat_events(self, folder: Path, iteration: int) -> None:
        """Writes the events of the checkpoint's own iteration again, from the rows it holds.

        `Events` hides all events of that iteration, since the row of its epoch may have come after
        the checkpoint.
        """
        for name, scalars in (
            ("metrics", _epoch_scalars),
            ("timings", _timing_scalars),
            ("rewires", _rewire_scalars),
        ):
            for row in read_csv(folder / f"{name}.csv"):
                if row["iteration"] == iteration:
                    self._tell(iteration, scalars(row))

    def lengths(self) -> dict[str, int]:
        """The length of each CSV file now, for the checkpoint. Events so far survive a kill."""
        for tracker in self.trackers:
            tracker.flush()
        return {name: log.length() for name, log in self.logs.items()}

    def sums(self) -> dict[str, torch.Tensor]:
        """The `line_sums` of each CSV file now, for the checkpoint."""
        return {name: torch.tensor(log.sums) for name, log in self.logs.items()}

    def epoch(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Records a finished epoch. Timings are apart, as they alone differ between equal runs."""
        self.logs["metrics"].row(row)
        self.logs["timings"].row(timing)
        self._tell(row["iteration"], {**_epoch_scalars(row), **_timing_scalars(timing)})

    def rewire(
        self,
        iteration: int,
        epoch: float,
        report: RewireReport | None,
        nonzeros: Mapping[str, int],
        exploration: float | None,
    ) -> None:
        """Records one rewire or, without a report, the pattern that training starts from."""
        row: dict[str, Any] = {"iteration": iteration, "epoch": epoch, "exploration": exploration}
        if report is not None:
            row |= {name: getattr(report, name) for name in REPORTED}
        row["nonzeros"] = sum(nonzeros.values())
        row |= {f"nonzeros:{name}": count for name, count in nonzeros.items()}
        self.logs["rewires"].row(row)
        self._tell(row["iteration"], _rewire_scalars(row))

    def _tell(self, iteration: int, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in self.trackers:
            tracker.scalars(iteration, known)

    def close(self, failed: bool = False) -> None:
        """failed: the run has not come to its end."""
        for log in self.logs.values():
            log.close()
        for tracker in self.trackers:
            tracker.close(failed)


def check(folder: Path, saved: State) -> list[str]:
    """The names of the CSV files that are gone from a run's folder.

    Raises UsageError, which names the file and the line, for one that is not what the checkpoint's
    state `saved` knows of it.
    """
    try:
        check_keys(saved, ["lengths"])
    except WrongState as error:
        raise UsageError(f"{folder}: damaged checkpoint: {STATE}: {error}") from None
    if "sums" not in saved:
        print(f"{folder}: an older version wrote the checkpoint, which has no checksums of tables")
    sums = saved.get("sums", {})
    return [
        name
        for name, length in saved["lengths"].items()
        if not verify(folder / f"{name}.csv", length, sums.get(name))
    ]
