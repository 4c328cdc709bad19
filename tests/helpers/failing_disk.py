"""A disk that refuses: writes to chosen files fail from some call on, half done."""

from __future__ import annotations

import errno
import os

import pytest


def refuse(
    patch: pytest.MonkeyPatch, name: str, code: int = errno.ENOSPC, allowed: int = 0
) -> list[str]:
    """Each write to a path that ends with `name` fails, after so many that are `allowed`.

    Half of what is to be written still arrives, as on a full disk. Returns the paths that were
    refused, which grows as they are.
    """
    real, calls, refused = os.write, [], []

    def write(descriptor: int, raw: bytes) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(name):
            calls.append(path)
            if len(calls) > allowed:
                real(descriptor, bytes(raw[: len(raw) // 2]))
                refused.append(path)
                raise OSError(code, os.strerror(code))
        return real(descriptor, raw)

    patch.setattr(os, "write", write)
    return refused
