"""A folder that a command writes into: made or found empty, and locked against a second process.

Runs and experiments use it alike. Either may come from elsewhere, with links in it to any file of
whoever goes on with it. So the folder itself may be reached by a link, but what is written to in it
may not. Jobs of a cluster carry this module with them.
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
NOT_PLAIN = "expected a plain file, got a link or another kind; remove it"
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
    """Raises UsageError where `open_plain` refuses."""
    try:
        return os.fdopen(open_plain(path, os.O_RDWR | os.O_CREAT), "r+")
    except OSError as error:
        if error.strerror != NOT_PLAIN:
            raise
        raise UsageError(f"{path}: {NOT_PLAIN}") from None


def open_plain(path: Path, flags: int) -> int:
    """The descriptor of a file in such a folder, opened to write to it; see os.open.

    Raises OSError, NOT_PLAIN, for a link and for what is no plain file; neither is written to.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise OSError(error.errno, NOT_PLAIN, str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_PLAIN, str(path))
    return descriptor


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Raises UsageError where one of these parts of the folder is a link: files would be written,
    replaced and removed wherever it leads.
    """
    for path in (folder / name for name in names):
        if path.is_symlink():
            raise UsageError(
                f"{path}: expected no link, got one to {shown(os.readlink(path))}; remove it, or "
                f"put there what it leads to. {folder} itself may be a link"
            )


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
