"""The CSV files of a run: a run appends to them, a resume cuts them back, a report reads them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsr_kernels.errors import UsageError

Row = dict[str, Any]  # a number for each column, None where the cell is empty


class CsvLog:
    """An append-only CSV file.

    Its length goes into the checkpoint. A resume cuts the file back to that length.
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
        cells = [cell(values.get(column)) for column in self.columns]
        self.file.write((",".join(cells) + "\n").encode())
        self.file.flush()

    def length(self) -> int:
        """Bytes so far, all of them on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def cell(value: Any) -> str:
    """A value as it is written: nine significant digits of a float, nothing for None."""
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> list[Row]:
    """The rows of a table of numbers, None where a cell is empty; no rows where there is no file.

    A last row that a kill has cut is left out. Raises UsageError for what is no text, for a cell
    that is no number and for a row with too few or too many cells.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(whole.splitlines(), restval="too few cells"))
        return [{k: float(v) if v else None for k, v in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a table of numbers: {error}") from None
