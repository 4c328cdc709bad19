"""Files that are either whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

Json = dict[str, Any]  # an object as the json module reads it


def sync_file(path: Path) -> None:
    """Forces what any process wrote to `path` onto the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Forces the names in the folder (a rename, a new file) onto the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `path`; a crash at any moment leaves the old content or the new, never a part."""
    raw = content.encode("utf-8") if isinstance(content, str) else content
    part = path.with_name(temporary(path.name))
    part.write_bytes(raw)
    sync_file(part)
    os.replace(part, path)
    sync_folder(path.parent)


def temporary(name: str) -> str:
    """The name beside a file's own under which `write_atomically` begins it."""
    return f".{name}.tmp"
