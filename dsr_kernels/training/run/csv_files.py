"""The CSV files of a run: a run appends to them, a resume cuts them back, a report reads them."""

from __future__ import annotations

import csv
import errno
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsr_kernels.errors import UsageError, shown
from dsr_kernels.training.run.files import naming, write_whole
from dsr_kernels.training.run.out_folder import open_plain

Row = dict[str, Any]  # a number for each column, None where the cell is empty


class CsvLog:
    """An append-only CSV file.

    Its length and its `line_sums` go into the checkpoint. A resume verifies the file and cuts it
    back to that length (see `verify`). `length` None begins a new file.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], length: int | None = None) -> None:
        self.path, self.columns = path, columns
        self.sums: list[int] = []
        header = ",".join(columns)
        with naming(path):
            if length is not None:
                raw = path.read_bytes()[:length]
                if not raw.startswith(f"{header}\n".encode()):
                    raise UsageError(f"{path}: expected the columns {header}")
                self.sums = line_sums(raw)
            descriptor = open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self.file = os.fdopen(descriptor, "ab", buffering=0)
            self.file.truncate(length or 0)
            if length is None:
                self._line(header)

    def row(self, values: Mapping[str, Any]) -> None:
        """Appends one row; columns without a value stay empty."""
        self._line(",".join(cell(values.get(column)) for column in self.columns))

    def _line(self, text: str) -> None:
        raw = (text + "\n").encode()
        with naming(self.path):
            write_whole(self.file.fileno(), raw)
        self.sums.append(zlib.crc32(raw, self.sums[-1] if self.sums else 0))

    def length(self) -> int:
        """Bytes so far, all of them on the disk. Raises OSError if the file has been removed."""
        with naming(self.path):
            os.fsync(self.file.fileno())
            facts = os.fstat(self.file.fileno())
            if not facts.st_nlink:
                raise FileNotFoundError(errno.ENOENT, "removed while the run writes it")
            return facts.st_size

    def close(self) -> None:
        self.file.close()


def line_sums(raw: bytes) -> list[int]:
    """For each whole line, the CRC-32 of all bytes from the beginning up to the line's end.

    The first sum that differs between two files tells the first line that does.
    """
    sums, crc = [], 0
    for line in raw.split(b"\n")[:-1]:
        crc = zlib.crc32(line + b"\n", crc)
        sums.append(crc)
    return sums


def verify(path: Path, length: int, sums: torch.Tensor | None) -> bool:
    """Whether there is a file at `path`. Raises UsageError unless it begins as the checkpoint says.

    length: bytes that the checkpoint knows of. sums: of their lines; None in the checkpoints of
    older versions, whose records can only be compared in length.
    """
    if not path.is_file():
        return False
    raw = path.read_bytes()
    way_out = (
        "put a copy of the file in its place, or remove it: the run then goes on and its former "
        "rows are lost"
    )
    if len(raw) < length:
        raise UsageError(
            f"{path}: does not belong to the checkpoint ({len(raw)} bytes, expected {length} or "
            f"more); {way_out}"
        )
    found = line_sums(raw[:length])
    expected = found if sums is None else sums.tolist()
    if found != expected:
        pairs = zip([*found, None], [*expected, None], strict=False)
        line = next(number for number, (a, b) in enumerate(pairs) if a != b)
        text = raw.split(b"\n")[line].decode(errors="backslashreplace")
        raise UsageError(
            f"{path}: damaged: line {line + 1} is not what the run wrote, it reads {shown(text)}; "
            f"{way_out}"
        )
    return True


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
