"""Which module's kernels run on which device."""

from __future__ import annotations

from types import ModuleType

import torch

from . import _native, launch


def launcher(device: torch.device) -> ModuleType:
    """The module whose forward, grad_input, grad_weight and grad_bias run on `device`.

    On GPUs the CUDA kernels, or Triton's where this build has none. Raises NotImplementedError.
    """
    if device.type == "cpu":
        return launch
    if device.type != "cuda":
        raise NotImplementedError(
            f"dsr_kernels: input is on {device}, but there are kernels for CPUs and CUDA GPUs "
            "only; move the model and its inputs to one of those"
        )
    if _native._cuda is not None:
        from . import cuda_launch

        return cuda_launch
    if _native.triton_version() is None:
        raise NotImplementedError(
            f"dsr_kernels: input is on {device}, but this build has no CUDA kernels and Triton, "
            "which would take over, cannot be imported; pip install triton, or install dsr_kernels "
            "anew where there is nvcc, or move the model and its inputs to the CPU"
        )
    from . import triton_launch

    return triton_launch
