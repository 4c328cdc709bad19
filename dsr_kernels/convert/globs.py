"""Naming layers by glob."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from dsr_kernels.choices import resembling


def check_globs(argument: str, globs: Iterable[str], names: list[str]) -> None:
    for glob in globs:
        if not any(fits(glob, name) for name in names):
            close = resembling(glob, names, 3, 0.3) or names[:3]
            raise ValueError(
                f"{argument}: {glob!r} fits no convolution or linear layer; "
                f"the closest names are {', '.join(close)}"
            )


def fits(glob: str, name: str) -> bool:
    """Whether the glob fits a layer's name or that of a container it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1))
