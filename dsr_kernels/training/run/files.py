"""Files that are either whole or absent: written beside their place, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Forces what was written to `path`, by whomever, onto the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Forces the names in a folder (a rename, a new file) onto the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """After a crash at any moment `path` holds the old content or the new one, never a part."""
    raw = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(raw)
    sync_file(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)
