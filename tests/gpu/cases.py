"""Convolutions for the GPU beside those of kernel_cases, in the same form."""

from __future__ import annotations

import torch
from kernel_cases import CASES, conv_and_input
from torch import Tensor

from dsr_kernels import SparseConv2d

from .device import DEVICE, ON_CUDA

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of activations

# Vectors are of 4 or 8 images, so batches around those; then what tiles, shared memory and the
# launch's classes of a stride divide badly.
BATCHES = {
    f"{n} images": ((7, 13, 3, (9, 11), n), {"padding": 1})
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 31, 129)
}
AWKWARD = {
    "129 images, stride 2": ((5, 17, 3, (15, 13), 129), {"padding": 1, "stride": 2}),
    "stride (3, 3), 5 x 5": ((6, 7, 5, (23, 19), 5), {"padding": 2, "stride": 3}),
    "stride (2, 1), 1 x 7": ((6, 7, (1, 7), (9, 20), 3), {"padding": (0, 3), "stride": (2, 1)}),
    "stride (1, 4)": ((3, 5, 3, (7, 26), 9), {"padding": 1, "stride": (1, 4)}),
    "stride 5 beyond the kernel": ((3, 5, 3, (17, 19), 3), {"padding": 1, "stride": 5}),
    "31 x 31, dilated by 3": (
        (2, 3, 31, (20, 17), 2),
        {"padding": 45, "dilation": 3, "sparsity": 0.97},
    ),
    "dilated by 40": ((2, 3, 3, (90, 83), 2), {"padding": 40, "dilation": 40}),
    "one row of 5000": ((3, 4, (1, 3), (1, 5000), 3), {"padding": (0, 1)}),
    "one column of 5000": ((3, 4, (3, 1), (5000, 1), 3), {"padding": (1, 0)}),
    "300 x 301": ((2, 3, 3, (300, 301), 1), {"padding": 1}),
    "2000 channels": ((2000, 3, 1, (3, 5), 5), {"sparsity": 0.9}),
    "2000 outputs": ((3, 2000, 1, (3, 5), 5), {"sparsity": 0.5}),
    "a long row among empty ones": ((600, 4, 3, (5, 5), 5), {"padding": 1, "sparsity": 0.995}),
    "wide groups": ((66, 34, 3, (6, 7), 9), {"padding": 1, "groups": 2, "sparsity": 0.8}),
    "depthwise, stride 2": (
        (33, 33, 3, (9, 11), 9),
        {"padding": 1, "stride": 2, "groups": 33, "sparsity": 0.4},
    ),
    "1 x 1, stride 3": ((9, 5, 1, (10, 8), 5), {"stride": 3}),
}
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
    "3 images", "9 images", "stride 3", "depthwise", "empty rows", "1 x 1", "1 x 1, padded",
    "stride and dilation", "source of width 1",
]  # fmt: skip


def on_device(name: str, dtype: torch.dtype, cases: dict = SMALL) -> tuple[SparseConv2d, Tensor]:
    """The layer, its values in float64 beside float64 and else in float32, and its input."""
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv, x = conv_and_input(name, weights, cases)
    if cases is LARGE and not ON_CUDA:
        x = x[:2]
    return conv.to(DEVICE), x.to(DEVICE, dtype)


def results(conv: SparseConv2d, x: Tensor, grad: Tensor) -> list[Tensor]:
    """[y, gx, gvalues] and, with a bias, gbias."""
    x = x.detach().requires_grad_()
    y = conv(x)
    inputs = [x, conv.values] + ([] if conv.bias is None else [conv.bias])
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def same_bits(ones: list[Tensor], others: list[Tensor]) -> bool:
    """Of finite numbers."""
    pairs = zip(ones, others, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in pairs)
