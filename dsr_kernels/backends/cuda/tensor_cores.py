"""Whether a call may take the kernels on tensor cores: users ask for them, and torch for TF32."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape

SWITCH = "DSR_GPU_TENSOR_CORES"  # environment variable


def wanted() -> bool:
    """Whether the user asks for windows: no GPU has run them yet, so they are not the default."""
    asked = os.environ.get(SWITCH, "0")
    if asked not in ("0", "1"):
        raise ValueError(f"the environment variable {SWITCH}: expected 0 or 1, got {asked!r}")
    return asked == "1"


def settings() -> tuple[bool, bool] | None:
    """What of the user's settings `allowed` depends on: None where nobody asks for windows."""
    return (tf32_allowed(False), tf32_allowed(True)) if wanted() else None


def allowed(x: Tensor, shape: ConvShape) -> bool:
    """Whether a call on x may take windows; float32 is rounded to TF32 there."""
    return wanted() and (x.dtype != torch.float32 or tf32_of(x, shape))


def tf32_of(x: Tensor, shape: ConvShape) -> bool:
    """Whether a call on x may round float32 to TF32: only where torch.nn's twin of the layer might.

    A pointwise convolution of images of one pixel may be a linear layer or a convolution. Nothing
    here tells which, so torch must allow both.
    """
    if x.dtype != torch.float32 or not wanted():
        return False
    return tf32_allowed((*shape.kernel, *x.shape[2:]) == (1, 1, 1, 1))


def tf32_allowed(maybe_linear: bool) -> bool:
    """Whether torch allows TF32 in convolutions and, `maybe_linear`, in matrix products, too.

    That is `torch.backends.cudnn.allow_tf32` and `torch.backends.cuda.matmul.allow_tf32`, whichever
    of torch's names for them they were set by.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # torch 2.9 has other names, and refuses to read the older ones where they would not say all.
    if hasattr(cudnn, "conv"):
        asked = (cudnn.conv, matmul) if maybe_linear else (cudnn.conv,)
        return all(setting.fp32_precision == "tf32" for setting in asked)
    return bool(cudnn.allow_tf32 and (matmul.allow_tf32 or not maybe_linear))
