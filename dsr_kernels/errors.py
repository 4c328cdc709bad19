"""The errors a user can cause or meet; the command line prints each as one sentence, without a
traceback.
"""

from __future__ import annotations


class UsageError(Exception):
    """A wrong argument, recipe, data set or run directory (exit code 2)."""

    exit_code = 2


class TrainingStopped(Exception):
    """Training cannot go on: the loss or a weight is not finite (exit code 3)."""

    exit_code = 3


class Interrupted(Exception):
    """A signal asked for an end; a checkpoint has been written (exit code 130 or 143)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def require(module: str, purpose: str, extra: str = "train"):
    """Imports an optional dependency, or says which extra brings it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"PIL": "pillow"}.get(name := module.split(".")[0], name)
        raise UsageError(
            f'{purpose} needs {package}, which is not installed: pip install "dsr_kernels[{extra}]"'
        ) from None
