"""The compiled core, and what there is to know about it.

torch is imported first on purpose: the core then shares the OpenMP runtime torch has loaded, so
the two use one pool of threads instead of two that compete.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

import torch

from dsr_kernels.devices import cuda_names, why_no_cuda

try:
    from dsr_kernels import _C
except ImportError as error:
    raise ImportError(
        "dsr_kernels is not built: its compiled core dsr_kernels._C could not be imported "
        f"({error}). Install the package with `pip install .` from its source tree; where it is "
        f"installed already, {Path(__file__).parent} hides it: start Python in another folder."
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


def triton_version() -> str | None:
    """The version of Triton, the fallback for GPUs; None where it cannot be imported."""
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def show_config() -> None:
    """Prints version, instruction set, threads, what runs on GPUs and which GPUs torch sees.

    Raises:
        ValueError: the environment variable DSR_CPU_ISA names an instruction set that this
            processor or build does not have.
    """
    print(f"dsr_kernels  {version()}")
    print(f"torch        {torch.__version__}")
    print(f"CPU kernels  {_C.isa()} (available: {', '.join(_C.available_isas())})")
    print(f"threads      {torch.get_num_threads()} (torch.set_num_threads governs)")
    print(f"CUDA kernels {_gpu_kernels()}")
    print(f"GPU          {why_no_cuda() or '; '.join(cuda_names())}")


def _gpu_kernels() -> str:
    if _cuda is not None and _cuda.emulated:
        return "emulated on the CPU"
    if _cuda is not None:
        version = _cuda.toolkit_version
        built = f"built with CUDA {version // 1000}.{version % 1000 // 10}"
        return f"for {_cuda.architectures.replace(',', ', ')} ({built})"
    triton = triton_version()
    if triton is None:
        return "not in this build, and no Triton: sparse modules run on the CPU only"
    return f"not in this build; Triton {triton} takes over on GPUs"
