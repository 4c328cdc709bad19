"""The Triton kernels on the GPU, called as they are where there is no build with nvcc.

On the CPU they run in Triton's interpreter (TRITON_INTERPRET=1), which knows no bfloat16.
"""

from __future__ import annotations

import os

import pytest
import torch
from helpers.formats import FORMATS, gradient_of
from helpers.nn_cases import check_results, layer, same_bits
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends.conv_shape import ConvShape

from .cases import INTERPRETED, on_device
from .device import DEVICE, ON_CUDA

pytestmark = pytest.mark.gpu
if not ON_CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("on the CPU, Triton needs TRITON_INTERPRET=1", allow_module_level=True)
launch = pytest.importorskip("dsr_kernels.backends.triton.launch", reason="no triton")

# Few: Triton compiles every kernel anew for each dtype, kernel size and kind of stride.
CASES = [
    *((torch.float32, name) for name in ("129 images", "16 wide, stride 2", "stride and dilation")),
    *((torch.float32, name) for name in ("depthwise", "1 x 1")),
    *((torch.bfloat16, name) for name in ("129 images", "1 x 1")),
    *((dtype, "16 wide, stride 2") for dtype in (torch.float16, torch.float64)),
]
if not ON_CUDA:
    CASES = [(dtype, n) for dtype in (torch.float32, torch.float16) for n in INTERPRETED]
VIEWS = ("channels_last", "sliced", "expanded gradient")


def results(conv: SparseConv2d, x: Tensor, grad: Tensor) -> list[Tensor]:
    """[y, gx, gvalues, gbias] from the launcher itself."""
    values, bias = conv.weight_values.detach(), conv.bias.detach()
    pattern = conv.crow_indices, conv.col_indices
    shape = ConvShape(conv.weight_shape, conv.stride, conv._sides, conv.dilation, conv.groups)
    y, gx, gvalues, gbias = (torch.empty_like(t) for t in (grad, x, values, bias))
    return [
        launch.sparse_conv2d(y, x, values, bias, *pattern, shape),
        launch.sparse_conv2d_grad_input(gx, grad, values, *pattern, shape),
        launch.sparse_conv2d_grad_weight(gvalues, x, grad, *pattern, shape),
        launch.sparse_conv2d_grad_bias(gbias, grad),
    ]


@pytest.mark.parametrize("dtype, name", CASES, ids=str)
def test_convolutions(dtype: torch.dtype, name: str) -> None:
    conv, x = on_device(name, dtype)
    grad = gradient_of(conv, x)
    ours = results(conv, x, grad)
    check_results(conv, x, grad, ours, "cpu")
    assert same_bits(ours, results(conv, x, grad))


@pytest.mark.parametrize("name", VIEWS)
def test_memory_formats(name: str) -> None:
    of_x, of_grad = FORMATS[name]
    conv = layer(2, 3, 3, padding=1, stride=2, sparsity=0.4).to(DEVICE)
    x = of_x(torch.randn(3, 2, 4, 5, device=DEVICE))
    grad = of_grad(gradient_of(conv, x))
    check_results(conv, x, grad, results(conv, x, grad), "cpu")
