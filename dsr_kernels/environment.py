"""What this machine and this build of the package have: versions, processor, GPUs."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from dsr_kernels.backends import native
from dsr_kernels.backends.devices import cuda_names, why_no_cuda
from dsr_kernels.backends.native import _C, triton_version
from dsr_kernels.backends.processor import cpu_name, dense_bf16_words, processor_words
from dsr_kernels.errors import UsageError
from dsr_kernels.version import version


def show_config() -> None:
    """Prints version, processor, instruction set, threads, what runs on GPUs, and the GPUs.

    What a dense model does in bfloat16 stands there too: it is the rival to measure against.

    Raises:
        ValueError: the environment variable DSR_CPU_ISA names an instruction set that this
            processor or build does not have.
    """
    print(f"dsr_kernels  {version()}")
    print(f"torch        {torch.__version__}")
    print(f"processor    {processor_words()}")
    print(f"dense bf16   {dense_bf16_words()}")
    print(f"CPU kernels  {_C.isa()} (available: {', '.join(_C.available_isas())})")
    print(f"threads      {torch.get_num_threads()} (torch.set_num_threads governs)")
    print(f"CUDA kernels {_gpu_kernels()}")
    print(f"GPU          {why_no_cuda() or '; '.join(cuda_names())}")


def _gpu_kernels() -> str:
    if native._cuda is not None and native._cuda.emulated:
        return "emulated on the CPU"
    if native._cuda is not None:
        version = native._cuda.toolkit_version
        built = f"built with CUDA {version // 1000}.{version % 1000 // 10}"
        return f"for {native._cuda.architectures.replace(',', ', ')} ({built})"
    absent = "not in this build (DSR_CUDA=ON pip install . builds them, where nvcc is)"
    triton = triton_version()
    if triton is None:
        return f"{absent}, and no Triton: sparse modules run on the CPU only"
    return f"{absent}; Triton {triton} takes over on GPUs"


def check_processor() -> None:
    """Raises UsageError if DSR_CPU_ISA names kernels that this processor or build lacks."""
    try:
        _C.isa()
    except ValueError as error:
        raise UsageError(str(error)) from None


def isa() -> str:
    """The instruction set that the CPU's kernels use."""
    return _C.isa()


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that a run was measured on, for its record."""
    return {
        **device_facts(device),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dsr_kernels": version(),
        "isa": isa(),
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """The device that a run was measured on, for its record."""
    if device.type == "cpu":
        return {"device": "cpu"}
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cudnn.allow_tf32,  # of torch's own convolutions in float32
    }
