"""Convolutions for the GPU beside those of kernel_cases, in the same form."""

from __future__ import annotations

import torch
from helpers.kernel_cases import AWKWARD, BATCHES, CASES, conv_and_input
from torch import Tensor

from dsr_kernels import SparseConv2d

from .device import DEVICE, ON_CUDA

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of activations

INTERPRETED = {  # for Triton's interpreter, which takes seconds for each of these
    "4 x 5": ((2, 3, 3, (4, 5), 2), {"padding": 1, "sparsity": 0.5}),
    "4 x 5, stride 2": ((2, 4, 3, (4, 5), 1), {"stride": 2, "padding": 1, "groups": 2}),
}
SMALL = CASES | BATCHES | AWKWARD | INTERPRETED

# Layers of WRN-28-2 and ResNet-50 at 90 %, and one with a ragged batch.
LARGE = {
    "32 wide of WRN": ((32, 32, 3, (32, 32), 128), {"padding": 1, "sparsity": 0.9}),
    "8 wide of WRN, 129": ((128, 128, 3, (8, 8), 129), {"padding": 1, "sparsity": 0.9}),
    "32 wide of WRN, stride 2": (
        (32, 64, 3, (32, 32), 128),
        {"padding": 1, "stride": 2, "sparsity": 0.9},
    ),
    "56 wide of ResNet": ((64, 64, 3, (56, 56), 16), {"padding": 1, "sparsity": 0.9}),
    "56 wide of ResNet, stride 2": (
        (128, 128, 3, (56, 56), 8),
        {"padding": 1, "stride": 2, "sparsity": 0.9},
    ),
    "7 wide of ResNet": ((512, 512, 3, (7, 7), 64), {"padding": 1, "sparsity": 0.98}),
    "1 x 1 of ResNet": ((256, 64, 1, (56, 56), 16), {"sparsity": 0.9}),
    "wide 1 x 1 of ResNet": ((512, 2048, 1, (7, 7), 64), {"sparsity": 0.95}),
    "stem of ResNet": ((3, 64, 7, (224, 224), 8), {"padding": 3, "stride": 2, "sparsity": 0.5}),
}

# Under compute-sanitizer: every kernel once, in few threads.
TINY = [
    *("3 images", "9 images", "stride 3", "depthwise", "empty rows", "1 x 1", "1 x 1, padded"),
    *("stride and dilation", "source of width 1"),
]


def on_device(
    name: str, dtype: torch.dtype, cases: dict = SMALL, block_size: int = 1
) -> tuple[SparseConv2d, Tensor]:
    """The layer, its values in float64 beside float64 and else in float32, and its input."""
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv, x = conv_and_input(name, weights, cases, block_size)
    if cases is LARGE and not ON_CUDA:
        x = x[:2]
    return conv.to(DEVICE), x.to(DEVICE, dtype)
