"""The OpenMP runtime that torch computes with, made visible to the compiled core.

The core is linked to no runtime. Torch's wheels bring one of their own, under a name that differs
from version to version: `libgomp.so.1`, or `libgomp-a34b3233.so.1`. A core that asks for
`libgomp.so.1` would load the system's beside the second, or fail where there is none. Two runtimes
in a process are two pools of threads that compete, and settings of one that the other never sees.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
ANY = "libgomp.so.1"  # the system's, for a torch that computes without OpenMP


class _Found(ctypes.Structure):
    """What dladdr says of an address (Dl_info)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("file_begins", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("symbol_begins", ctypes.c_void_p),
    )


def share() -> None:
    """Lets modules that are loaded from now on find the functions of torch's OpenMP runtime.

    Raises:
        ImportError: torch has none, and neither has the system.
    """
    runtime = runtime_of(LIBRARY) or ANY
    try:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(
            f"dsr_kernels needs an OpenMP runtime: this torch brings none, and {error}. On Debian "
            "and Ubuntu: apt install libgomp1"
        ) from None


def runtime_of(library: Path) -> str | None:
    """The file whose `GOMP_parallel` a library is linked to; None if there is no such function."""
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found = _Found()
    dladdr = ctypes.CDLL(None).dladdr
    if not dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(found)):
        return None
    return found.file.decode()
