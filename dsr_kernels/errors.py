"""The errors that a user can cause or meet. `dsr` prints each as one sentence, no traceback."""

from __future__ import annotations

import importlib
from types import ModuleType


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


def require(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """Imports an optional dependency. Raises UsageError, which says what to install for it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"PIL": "pillow"}.get(name := module.split(".")[0], name)
        raise UsageError(
            f'{purpose} needs {package}, which is not installed: pip install "dsr_kernels[{extra}]"'
        ) from None
