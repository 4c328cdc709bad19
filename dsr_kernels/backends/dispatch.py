"""What every backend offers, and which of them runs on a GPU."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dsr_kernels.backends import cpu, cpu_calls, cpu_fused, native
from dsr_kernels.backends.calls import Preparer
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.fused import Epilogue, InputGrad, Prologue, StatisticsGrad


class Backend(Protocol):
    """The launchers of one kind of device: the modules cpu, cuda.launch and triton.launch.

    `ops.library` has checked every argument and allocated `out`, which each fills and returns.
    Activations may have any strides.
    """

    def sparse_conv2d(
        self,
        out: Tensor,  # [N, O, P, Q]
        x: Tensor,  # [N, C, H, W]
        values: Tensor,  # [blocks, block_size] or [nnz]
        bias: Tensor | None,  # [O]
        crow_indices: Tensor,  # [O // block_size + 1] int32
        col_indices: Tensor,  # [blocks] int32
        shape: ConvShape,
    ) -> Tensor:
        """out = conv2d(pad(x), W) + bias."""

    def sparse_conv2d_grad_input(
        self,
        out: Tensor,  # [N, C, H, W]
        grad: Tensor,  # [N, O, P, Q]
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
    ) -> Tensor:
        """out = conv_transpose2d(grad, W) without the padding's share."""

    def sparse_conv2d_grad_weight(
        self,
        out: Tensor,  # [nnz]
        x: Tensor,  # [N, C, H, W]
        grad: Tensor,  # [N, O, P, Q]
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
    ) -> Tensor:
        """out = the dense weight's gradient at the non-zeros."""

    def sparse_conv2d_grad_bias(
        self,
        out: Tensor,  # [O]
        grad: Tensor,  # [N, O, P, Q]
    ) -> Tensor:
        """out = grad summed over batch and image."""


class FusedBackend(Protocol):
    """The launchers of one kind of device that take batch norm, ReLU and additions in.

    One that returns None has written nothing: it leaves the call to plain operations.
    """

    def takes(self, activation: Tensor, values_dtype: torch.dtype) -> bool:
        """Whether the kernels compute activations like this one."""

    def sparse_conv2d_fused(
        self,
        out: Tensor,  # [N, O, P, Q]
        x: Tensor,  # [N, C, H, W]
        prologue: Prologue,
        values: Tensor,  # [blocks, block_size] or [nnz]
        bias: Tensor | None,  # [O]
        crow_indices: Tensor,  # [O // block_size + 1] int32
        col_indices: Tensor,  # [blocks] int32
        epilogue: Epilogue,
        shape: ConvShape,
    ) -> Tensor | None:
        """out = relu(conv2d(pad(z), W) * scale + bias + residual); fills its statistics, too."""

    def sparse_conv2d_fused_grad_input(
        self,
        out: Tensor,  # [N, C, H, W]
        grad: Tensor,  # [N, O, P, Q]
        by_statistics: StatisticsGrad | None,
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        store: InputGrad,
        shape: ConvShape,
    ) -> Tensor | None:
        """out = the gradient of x; fills the sums of `store`, too."""

    def sparse_conv2d_fused_grad_weight(
        self,
        out: Tensor,  # [nnz]
        x: Tensor,  # [N, C, H, W]
        prologue: Prologue,
        grad: Tensor,  # [N, O, P, Q]
        by_statistics: StatisticsGrad | None,
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
    ) -> Tensor | None:
        """out = the dense weight's gradient at the non-zeros, by z and g (see backends.fused)."""


CPU: Backend = cpu  # so that mypy holds it against the protocol; callers name `cpu` itself


def gpu_backend(device: torch.device) -> Backend:
    """The CUDA kernels, or Triton's where this build has none; each is imported at first use.

    Raises NotImplementedError for a device that is no GPU, and where there are no kernels for it.
    """
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


CPU_CALLS: Preparer = cpu_calls


def gpu_calls(device: torch.device) -> Preparer | None:
    """What prepares calls of a GPU's kernels; None where nothing does."""
    if device.type != "cuda" or native._cuda is None:
        return None
    from dsr_kernels.backends.cuda import calls as cuda

    return cuda


FUSED_CPU: FusedBackend = cpu_fused


def fused_backend(device: torch.device) -> FusedBackend | None:
    """The fused kernels of a device; None where it has none."""
    if device.type == "cuda" and native._cuda is not None:
        from dsr_kernels.backends.cuda import fused as cuda

        return cuda
    return cpu_fused if device.type == "cpu" else None
