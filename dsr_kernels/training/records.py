"""What a run writes while it trains: CSV files that resume exactly, and TensorBoard events."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsr_kernels.training.errors import UsageError

METRICS = ("epoch", "iteration", "lr", "train_loss", "train_accuracy", "validation_loss",
           "validation_accuracy", "test_loss", "test_accuracy", "nonzeros")  # fmt: skip
TIMINGS = ("epoch", "iteration", "train_seconds", "images", "images_per_second")
REWIRES = ("iteration", "epoch", "threshold", "next_threshold", "pruned", "grown", "nonzeros")


class CsvLog:
    """An append-only CSV file. Its length goes into the checkpoint; a resume cuts it back to that
    length.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], length: int | None = None) -> None:
        self.columns = columns
        header = (",".join(columns) + "\n").encode()
        if length is None:
            path.write_bytes(header)
        else:
            found = path.stat().st_size if path.is_file() else 0
            if found < length or not path.read_bytes().startswith(header):
                raise UsageError(
                    f"{path}: does not belong to the checkpoint ({found} bytes, expected {length} "
                    "or more)"
                )
            os.truncate(path, length)
        self.file = path.open("ab")

    def row(self, values: Mapping[str, Any]) -> None:
        """Appends one row; columns without a value stay empty."""
        cells = [_cell(values.get(column)) for column in self.columns]
        self.file.write((",".join(cells) + "\n").encode())
        self.file.flush()

    def length(self) -> int:
        """Bytes so far, all of them on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


class Events:
    """TensorBoard scalars; silently nothing where tensorboard is not installed."""

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.writer = None
            return
        # purge_step hides what an earlier, killed process wrote after the checkpoint.
        purge = None if resumed_at is None else resumed_at + 1
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def scalars(self, iteration: int, values: Mapping[str, float | None]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                if value is not None:
                    self.writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class Records:
    """All records of one run; `lengths` is their state for the checkpoint."""

    def __init__(
        self,
        folder: Path,
        layers: list[str],
        lengths: Mapping[str, int] | None = None,
        resumed_at: int | None = None,
    ) -> None:
        columns = {
            "metrics": METRICS,
            "timings": TIMINGS,
            "rewires": REWIRES + tuple(f"nonzeros:{name}" for name in layers),
        }
        self.logs = {
            name: CsvLog(folder / f"{name}.csv", names, None if lengths is None else lengths[name])
            for name, names in columns.items()
        }
        self.events = Events(folder / "tensorboard", resumed_at)

    def lengths(self) -> dict[str, int]:
        return {name: log.length() for name, log in self.logs.items()}

    def epoch(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """One finished epoch. Timings are apart because they alone differ between equal runs."""
        self.logs["metrics"].row(row)
        self.logs["timings"].row(timing)
        scalars = {k: row.get(k) for k in METRICS[2:]}
        self.events.scalars(
            row["iteration"], {**scalars, "images_per_second": timing["images_per_second"]}
        )

    def rewire(self, row: Mapping[str, Any], nonzeros: Mapping[str, int]) -> None:
        """One rewire, or (with only an iteration) the pattern training starts from."""
        per_layer = {f"nonzeros:{name}": count for name, count in nonzeros.items()}
        total = sum(nonzeros.values())
        self.logs["rewires"].row({**row, **per_layer, "nonzeros": total})
        scalars = {f"rewire/{k}": row.get(k) for k in ("threshold", "pruned", "grown")}
        layers = {f"nonzeros/{name}": count for name, count in nonzeros.items()}
        self.events.scalars(row["iteration"], {**scalars, **layers})

    def close(self) -> None:
        for log in self.logs.values():
            log.close()
        self.events.close()
