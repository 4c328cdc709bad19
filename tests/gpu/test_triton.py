"""The Triton kernels on the GPU, called as they are where there is no build with nvcc.

On the CPU they run in Triton's interpreter (TRITON_INTERPRET=1), which knows no bfloat16.
"""

from __future__ import annotations

import os

import pytest
import torch
from nn_cases import check_results, layer
from test_lanes import FORMATS, gradient_of
from torch import Tensor

from dsr_kernels import SparseConv2d

from .cases import on_device, same_bits
from .device import DEVICE, ON_CUDA

pytestmark = pytest.mark.gpu
if not ON_CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("on the CPU, Triton needs TRITON_INTERPRET=1", allow_module_level=True)
launch = pytest.importorskip("dsr_kernels.triton_launch", reason="no triton")

NAMES = [
    "3 images", "129 images", "28 wide", "stem", "16 wide, stride 2", "stride 3", "8 wide",
    "stride (2, 1), 1 x 7", "13 wide, 5 x 2 'same'", "stride and dilation", "groups", "depthwise",
    "blocks of channels", "deep", "empty rows", "kernel wider than the image", "1 x 1",
    "1 x 1, stride 2", "31 x 31, dilated by 3",
]  # fmt: skip
if not ON_CUDA:
    NAMES = ["3 images", "stride 3", "groups", "empty rows", "1 x 1, stride 2"]
DTYPES = [torch.float32, torch.float64, torch.float16] + [torch.bfloat16] * ON_CUDA


def results(conv: SparseConv2d, x: Tensor, grad: Tensor) -> list[Tensor]:
    """[y, gx, gvalues, gbias] from the launcher itself."""
    values, bias = conv.values.detach(), conv.bias.detach()
    pattern = conv.crow_indices, conv.col_indices
    shape = conv.weight_shape, conv.stride, conv._sides, conv.dilation, conv.groups
    return [
        launch.forward(torch.empty_like(grad), x, values, bias, *pattern, *shape),
        launch.grad_input(torch.empty_like(x), grad, values, *pattern, *shape),
        launch.grad_weight(torch.empty_like(values), x, grad, *pattern, *shape),
        launch.grad_bias(torch.empty_like(bias), grad),
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolutions(name: str, dtype: torch.dtype) -> None:
    conv, x = on_device(name, dtype)
    grad = gradient_of(conv, x)
    ours = results(conv, x, grad)
    check_results(conv, x, grad, ours, "cpu")
    assert same_bits(ours, results(conv, x, grad))


@pytest.mark.parametrize("name", FORMATS)
def test_memory_formats(name: str) -> None:
    of_x, of_grad = FORMATS[name]
    for stride, kernel in ((1, 3), (2, 3), (1, 1)):
        conv = layer(5, 6, kernel, padding=kernel // 2, stride=stride, sparsity=0.4).to(DEVICE)
        x = of_x(torch.randn(5, 5, 6, 7, device=DEVICE))
        grad = of_grad(gradient_of(conv, x))
        check_results(conv, x, grad, results(conv, x, grad), "cpu")
