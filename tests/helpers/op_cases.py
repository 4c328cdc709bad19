"""A small awkward convolution as the arguments of the raw ops, and what must hold of the ops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.ops import autograd, reference
from dsr_kernels.topology import Topology

OPS = torch.ops.dsr_kernels


def problem(dtype=torch.float64, last=False, requires_grad=True, device="cpu", block_size=1):
    """x, values, bias, crow, col and the shape of a small awkward convolution."""
    generator = torch.Generator().manual_seed(0)
    options = {"block_size": block_size, "generator": generator, "device": device}
    topology = Topology.random((4, 3, 3, 2), 20, **options)
    x = torch.randn(2, 6, 5, 4, dtype=dtype, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    values = torch.randn(20, dtype=dtype, generator=generator)
    bias = torch.randn(4, dtype=dtype, generator=generator)
    x, values, bias = (t.to(device).requires_grad_(requires_grad) for t in (x, values, bias))
    shape = ConvShape((4, 3, 3, 2), (2, 1), (1, 0, 1, 2), (1, 2), 2)
    return x, values, bias, topology.crow_indices, topology.col_indices, shape


def grad_like_output(x, values, bias, crow, col, shape):
    with torch.no_grad():
        y = OPS.sparse_conv2d(x, values, bias, crow, col, *shape)
    return torch.randn_like(y).requires_grad_(x.requires_grad)


def check_against_the_reference(last: bool, device="cpu", block_size=1) -> None:
    """Every op beside `reference`, which computes on the CPU in float64."""
    options = {"requires_grad": False, "device": device, "block_size": block_size}
    x, values, bias, crow, col, shape = problem(last=last, **options)
    grad, size = grad_like_output(x, values, bias, crow, col, shape), x.shape[1:]
    ours = [
        OPS.sparse_conv2d(x, values, bias, crow, col, *shape),
        OPS.sparse_conv2d_grad_input(grad, values, crow, col, size, *shape, last),
        OPS.sparse_conv2d_grad_weight(x, grad, crow, col, *shape, torch.float64),
        OPS.sparse_conv2d_grad_bias(grad, torch.float64),
    ]
    assert all(t.device == x.device for t in ours)
    x, values, bias, crow, col, grad = (t.cpu() for t in (x, values, bias, crow, col, grad))
    expected = [
        reference.sparse_conv2d(x, values, bias, crow, col, *shape),
        reference.sparse_conv2d_grad_input(grad, values, crow, col, size, *shape),
        reference.sparse_conv2d_grad_weight(x, grad, crow, col, *shape),
        reference.sparse_conv2d_grad_bias(grad),
    ]
    torch.testing.assert_close([t.cpu() for t in ours], expected)


def check_opcheck(dtype: torch.dtype, last: bool, device="cpu", block_size=1) -> None:
    """torch.library.opcheck of every op."""
    weights = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    options = {"device": device, "block_size": block_size}
    x, values, bias, crow, col, shape = problem(weights, last, **options)
    x = x.detach().to(dtype).requires_grad_()
    grad = grad_like_output(x, values, bias, crow, col, shape)
    torch.library.opcheck(OPS.sparse_conv2d, (x, values, bias, crow, col, *shape))
    torch.library.opcheck(OPS.sparse_conv2d, (x, values, None, crow, col, *shape))
    args = (grad, values, crow, col, x.shape[1:], *shape, last)
    torch.library.opcheck(OPS.sparse_conv2d_grad_input, args)
    args = (x, grad, crow, col, *shape, weights)
    torch.library.opcheck(OPS.sparse_conv2d_grad_weight, args)
    torch.library.opcheck(OPS.sparse_conv2d_grad_bias, (grad, weights))


def check_derivatives(direct: bool, device="cpu", block_size=1) -> None:
    """gradcheck and gradgradcheck of the ops, called directly or through the dispatcher."""
    x, values, bias, crow, col, shape = problem(device=device, block_size=block_size)
    fields = (shape,) if direct else shape  # the dispatcher's schemas know no ConvShape
    ops = autograd if direct else OPS
    grad = grad_like_output(x, values, bias, crow, col, shape)

    def forward(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return ops.sparse_conv2d(x, values, bias, crow, col, *fields)

    def backward_x(grad: Tensor, values: Tensor) -> Tensor:
        size = x.shape[1:]
        return ops.sparse_conv2d_grad_input(grad, values, crow, col, size, *fields, False)

    def backward_w(x: Tensor, grad: Tensor) -> Tensor:
        return ops.sparse_conv2d_grad_weight(x, grad, crow, col, *fields, torch.float64)

    assert gradcheck(forward, (x, values, bias), fast_mode=not direct)
    assert gradcheck(backward_x, (grad, values), fast_mode=True)
    assert gradcheck(backward_w, (x, grad), fast_mode=True)
    assert gradgradcheck(forward, (x, values, bias), fast_mode=True)
