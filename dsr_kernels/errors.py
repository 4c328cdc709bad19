"""The errors that a user can cause or meet. `dsr` prints each as one sentence, no traceback."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

LONGEST = 80  # characters of a value that a message shows
MOST_THREADS = 1024
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}  # what to install for these modules


class UsageError(Exception):
    """A wrong argument, recipe, data set or folder of a run (exit code 2)."""

    exit_code = 2


class TrainingStopped(Exception):
    """Training cannot go on, since the loss or a weight is not finite (exit code 3)."""

    exit_code = 3


class Interrupted(Exception):
    """A signal has stopped training; a checkpoint is saved (exit code 130 or 143)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(BaseException):
    """SIGTERM has come while a run starts, or after its training (exit code 143)."""

    exit_code = 143
    NOTHING = "; nothing was trained: the same command starts again"  # where there is no run yet


class SystemFailed(Exception):
    """The system refuses what a run or an experiment needs: room on a disk, memory (exit code 1).

    The message says what is kept and how to go on.
    """

    exit_code = 1


class SaidElsewhere(Exception):
    """This process ends as all of its run do, with the `error` that another of them says."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        self.exit_code: int = getattr(error, "exit_code", code)


def shown(value: Any) -> str:
    """`value` for a message: its repr, or the beginning of one that is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, hundreds of brackets
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def in_words(error: OSError) -> str:
    """The file and what the system says of it: "runs/a/metrics.csv: No space left on device"."""
    what = error.strerror or str(error)
    return what if error.filename is None else f"{os.fsdecode(error.filename)}: {what}"


def check_path(path: str | Path, argument: str) -> None:
    """Raises UsageError for a path that the system cannot look up; `argument` is who gave it.

    Such a path is too long, leads through a file, a closed folder or a circle of links, or has a
    NUL in it. A path at which nothing lies is fine.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{argument}: {shown(str(path))}: {error.strerror}") from None
    except ValueError:
        raise UsageError(
            f"{argument}: expected a path without NUL, got {shown(str(path))}"
        ) from None


def check_threads(number: int | None) -> None:
    """Raises UsageError for a number of CPU threads that OpenMP may not start; None is fine."""
    if number is not None and not 1 <= number <= MOST_THREADS:
        bound = "at least 1" if number < 1 else f"at most {MOST_THREADS}"
        raise UsageError(f"--threads: expected {bound}, got {shown(number)}")


def require(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """Imports an optional dependency. Raises UsageError, which says what to install for it."""
    return require_all([module], purpose, extra)[0]


def require_all(modules: Iterable[str], purpose: str, extra: str = "train") -> list[ModuleType]:
    """The same of several. The UsageError names all that are missing."""
    found, missing = [], []
    for module in modules:
        try:
            found.append(importlib.import_module(module))
        except ImportError:
            name = module.split(".")[0]
            missing.append(PACKAGES.get(name, name))
    if missing:
        are = "which is" if len(missing) == 1 else "which are"
        raise UsageError(
            f"{purpose} needs {' and '.join(missing)}, {are} not installed: pip install "
            f'"dsr_kernels[{extra}]"'
        )
    return found
