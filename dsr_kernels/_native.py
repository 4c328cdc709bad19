"""The compiled core, and what there is to know about it.

torch is imported first on purpose: the core then shares the OpenMP runtime torch has loaded, so
the two use one pool of threads instead of two that compete.
"""

from __future__ import annotations

import importlib
from importlib import metadata

import torch

try:
    from dsr_kernels import _C
except ImportError as error:
    raise ImportError(
        "dsr_kernels is not built: its compiled core dsr_kernels._C could not be imported "
        f"({error}). Install the package with `pip install .` from its source tree."
    ) from error

try:
    _cuda = importlib.import_module("dsr_kernels._cuda")
except ModuleNotFoundError as error:
    if error.name != "dsr_kernels._cuda":
        raise
    _cuda = None  # built without nvcc
except ImportError as error:
    raise ImportError(
        f"dsr_kernels: its GPU kernels dsr_kernels._cuda cannot be loaded ({error}). Install the "
        "package anew from its source tree: with DSR_CUDA=OFF, to do without them."
    ) from error

__all__ = ["_C", "_cuda", "show_config"]


def version() -> str:
    """The installed version, or "unknown" where the package is only a source tree on sys.path."""
    try:
        return metadata.version("dsr_kernels")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def show_config() -> None:
    """Prints version, instruction set, threads and what is known of CUDA.

    Raises:
        ValueError: the environment variable DSR_CPU_ISA names an instruction set that this
            processor or build does not have.
    """
    print(f"dsr_kernels  {version()}")
    print(f"torch        {torch.__version__}")
    print(f"CPU kernels  {_C.isa()} (available: {', '.join(_C.available_isas())})")
    print(f"threads      {torch.get_num_threads()} (torch.set_num_threads governs)")
    print("CUDA kernels not in this build; sparse modules run on the CPU")
