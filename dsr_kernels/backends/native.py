"""The compiled modules: `_C` for CPUs, `_cuda` for GPUs or None.

torch is imported first on purpose: the core then shares the OpenMP runtime torch has loaded
(`backends.openmp`), so the two use one pool of threads instead of two that compete.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dsr_kernels.backends import openmp

openmp.share()
try:
    from dsr_kernels import _C
except ImportError as error:
    raise ImportError(
        "dsr_kernels is not built: its compiled core dsr_kernels._C could not be imported "
        f"({error}). Install the package with `pip install .` from its source tree; where it is "
        f"installed already, {Path(__file__).parents[1]} hides it: start Python in another folder."
    ) from error

try:
    import dsr_kernels._cuda as _cuda
except ModuleNotFoundError as error:
    if error.name != "dsr_kernels._cuda":
        raise
    _cuda = None  # type: ignore[assignment]  # built without nvcc
except ImportError as error:
    raise ImportError(
        f"dsr_kernels: its GPU kernels dsr_kernels._cuda cannot be loaded ({error}). Install the "
        "package anew from its source tree: with DSR_CUDA=OFF, to do without them."
    ) from error

__all__ = ["DTYPE_CODES", "_C", "_cuda", "triton_version"]

# The dtypes of values, in the words of the compiled core.
DTYPE_CODES = {torch.float32: "float32", torch.float64: "float64"}


def triton_version() -> str | None:
    """The version of Triton, the fallback for GPUs; None where it cannot be imported."""
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__
