"""A folder that a command writes into: made or found empty, and locked against a second process.

Runs and experiments use it alike.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import weakref
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TextIO

from dsr_kernels.errors import UsageError, check_path, shown

LOCK = ".lock"
_locks: weakref.WeakSet[TextIO] = weakref.WeakSet()  # those that this process holds
LONGEST_PATH = 4096 - 256  # bytes: leaves room for the names of the files in it


def prepare(folder: Path, holds: str, leftovers: Collection[str] = ()) -> list[Path]:
    """Makes `folder` where there is none; returns what it made, the innermost folder first.

    Raises UsageError, and makes nothing, where that cannot be, where it is a file, or where it is
    not empty. The lock and the files named `leftovers`, which a process leaves that was killed as
    it began, do not count. `holds` is what should be in the folder, for the message: "run" or
    "experiment".
    """
    check(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out: {folder} is not a folder")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        if not missing and {path.name for path in folder.iterdir()} - {LOCK, *leftovers}:
            raise UsageError(
                f"--out: {folder} is not empty and holds no {holds}; name another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove(missing)
        raise UsageError(f"--out: cannot make {folder}: {error.strerror}") from None
    return missing


def check(folder: Path) -> None:
    """Raises UsageError for a path at which, or below which, the system can look up nothing."""
    check_path(folder, "--out")
    if len(os.fsencode(folder.absolute())) > LONGEST_PATH:
        raise UsageError(
            f"--out: expected a path of at most {LONGEST_PATH} bytes, got {shown(str(folder))}"
        )


def remove(made: Iterable[Path]) -> None:
    """Removes the folders that `prepare` made; one that is not empty stays, and all around it."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def lock(folder: Path) -> TextIO | None:
    """Locks `folder`; None where another process holds the lock.

    The lock lasts until the file that is returned is closed, or the process ends, however it ends.
    """
    file = _open_lock(folder / LOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        file.close()
        raise
    _locks.add(file)
    return file


def _leave_to_parent() -> None:
    """In a child, such as one that reads data: it would hold a lock on after a killed parent."""
    for file in list(_locks):
        file.close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _open_lock(path: Path) -> TextIO:
    """Raises UsageError for a link, which a folder from elsewhere may have to any file, and for
    what is no plain file; neither is written to.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        descriptor = None
    if descriptor is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        if descriptor is not None:
            os.close(descriptor)
        raise UsageError(f"{path}: expected a plain file, got a link or another kind; remove it")
    return os.fdopen(descriptor, "r+")


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `folder`; leaves no file behind.

    Jobs of a cluster carry this function with them, so it uses nothing else of this package.
    """
    path = folder / LOCK
    if path.is_symlink() or not path.is_file():
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
