"""Versions, told without importing what they are of: ``dsr --version`` is quick."""

from __future__ import annotations

import platform
from importlib import metadata


def version() -> str:
    """The installed version, or "unknown" where the package is only a source tree on sys.path."""
    return _installed("dsr_kernels") or "unknown (not installed)"


def versions() -> str:
    """The versions of this package and of what it runs on, in one line."""
    torch = _installed("torch") or "not installed"
    return f"{version()} (torch {torch}, Python {platform.python_version()})"


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
