"""Which module's kernels run on which device."""

from __future__ import annotations

from types import ModuleType

import torch

from dsr_kernels.backends import cpu, native


def launcher(device: torch.device) -> ModuleType:
    """The module whose forward, grad_input, grad_weight and grad_bias run on `device`.

    On GPUs the CUDA kernels, or Triton's where this build has none. Raises NotImplementedError.
    """
    if device.type == "cpu":
        return cpu
    if device.type != "cuda":
        raise NotImplementedError(
            f"dsr_kernels: input is on {device}, but there are kernels for CPUs and CUDA GPUs "
            "only; move the model and its inputs to one of those"
        )
    if native._cuda is not None:
        from dsr_kernels.backends.cuda import launch as cuda

        return cuda
    if native.triton_version() is None:
        raise NotImplementedError(
            f"dsr_kernels: input is on {device}, but this build has no CUDA kernels and Triton, "
            "which would take over, cannot be imported; pip install triton, or install dsr_kernels "
            "anew where there is nvcc, or move the model and its inputs to the CPU"
        )
    from dsr_kernels.backends.triton import launch as triton

    return triton
