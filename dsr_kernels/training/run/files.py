"""Files that are either whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]  # an object as the json module reads it


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names `path` in an OSError that says of no file, as one from a write does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_whole(descriptor: int, raw: bytes) -> None:
    """Writes all of `raw`: one call may write a part, where a disk is nearly full."""
    rest = memoryview(raw)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_file(path: Path) -> None:
    """Forces what any process wrote to `path` onto the disk."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Forces the names in the folder (a rename, a new file) onto the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `path`; a crash at any moment leaves the old content or the new, never a part.

    Where the system refuses to write it, an OSError names it and the old content stays.
    """
    raw = content.encode("utf-8") if isinstance(content, str) else content
    part = path.with_name(temporary(path.name))
    try:
        write_file(part, raw)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def write_file(path: Path, raw: bytes) -> None:
    """Writes a new file, and returns once it is on the disk.

    What a killed process has left under its name goes first, so that a link, which a folder from
    elsewhere may have there, is never written through.
    """
    with naming(path):
        path.unlink(missing_ok=True)
        with path.open("xb", buffering=0) as file:
            write_whole(file.fileno(), raw)
    sync_file(path)


def temporary(name: str) -> str:
    """The name beside a file's own under which `write_atomically` begins it."""
    return f".{name}.tmp"
