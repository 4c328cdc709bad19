"""A folder that a command writes into: made or found empty, and locked against a second process.

Runs and experiments use it alike.
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

from dsr_kernels.errors import UsageError

LOCK = ".lock"


def prepare(folder: Path, holds: str, leftovers: Collection[str] = ()) -> bool:
    """Makes `folder` where there is none; returns whether it did.

    Raises UsageError where it cannot be made, is a file, or is not empty. The lock and the files
    named `leftovers`, which a process leaves that was killed as it began, do not count. `holds` is
    what should be in the folder, for the message: "run" or "experiment".
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out: {folder} is not a folder")
    made = not folder.exists()
    if not made and any(path.name not in {LOCK, *leftovers} for path in folder.iterdir()):
        raise UsageError(f"--out: {folder} is not empty and holds no {holds}; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make {folder}: {error.strerror}") from None
    return made


def lock(folder: Path) -> TextIO | None:
    """Locks `folder`; None where another process holds the lock.

    The lock lasts until the file that is returned is closed, or the process ends, however it ends.
    """
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `folder`; leaves no file behind."""
    if not (folder / LOCK).is_file():
        return False
    held = lock(folder)
    if held is not None:
        held.close()
    return held is None
