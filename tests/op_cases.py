"""A small awkward convolution as the arguments of the raw ops."""

from __future__ import annotations

import torch

from dsr_kernels.topology import Topology

OPS = torch.ops.dsr_kernels


def problem(dtype=torch.float64, last=False, requires_grad=True):
    """x, values, bias, crow, col and the shape arguments of a small awkward convolution."""
    generator = torch.Generator().manual_seed(0)
    topology = Topology.random((4, 3, 3, 2), 20, generator=generator)
    x = torch.randn(2, 6, 5, 4, dtype=dtype, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    values = torch.randn(20, dtype=dtype, generator=generator)
    bias = torch.randn(4, dtype=dtype, generator=generator)
    for t in (x, values, bias):
        t.requires_grad_(requires_grad)
    shape = ((4, 3, 3, 2), (2, 1), (1, 0, 1, 2), (1, 2), 2)
    return x, values, bias, topology.crow_indices, topology.col_indices, shape


def grad_like_output(x, values, bias, crow, col, shape):
    with torch.no_grad():
        y = OPS.sparse_conv2d(x, values, bias, crow, col, *shape)
    return torch.randn_like(y).requires_grad_(x.requires_grad)
