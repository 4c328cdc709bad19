"""The CPU's elementwise kernels: one pass each over dense activations.

ops.fused.elementwise_library has checked every argument and allocated what is written. An operand
in another memory format than the first result, or with gaps between its numbers, is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends.address import address
from dsr_kernels.backends.fused import Affine
from dsr_kernels.backends.native import _C

# What activations are stored as, in the words of the compiled core.
ELEMENTS = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}

_Addresses = tuple[int, int, int]
_NOTHING = (0, 0, 0)


def takes(x: Tensor) -> bool:
    """Whether there are kernels for activations like x."""
    return x.is_cpu and x.dtype in ELEMENTS


def channel_moments(mean: Tensor, variance: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Fills mean and variance [C] of x [N, C, H, W]; there is at least one number a channel."""
    last = _channels_last(x)
    x, size = _dense(x, last), _size(x)
    workspace = _workspace(size, last, 2)
    _C.channel_moments(
        ELEMENTS[x.dtype],
        size,
        last,
        address(x),
        address(mean),
        address(variance),
        torch.get_num_threads(),
        address(workspace),
    )
    return mean, variance


def channel_affine(
    out: Tensor,  # [N, C, H, W]
    x: Tensor,
    by: Affine,
    relu: bool,
    other: Tensor | None,
    other_by: Affine | None,
) -> Tensor:
    """out = relu(affine(x) + affine(other))."""
    last = _channels_last(out)
    x, other = _dense(x, last), _dense_or_none(other, last)
    by, other_by = _contiguous(by), None if other_by is None else _contiguous(other_by)
    _C.channel_affine(
        ELEMENTS[x.dtype],
        _size(x),
        last,
        address(x),
        _addresses(by),
        relu,
        _address_or_none(other),
        _addresses(other_by),
        address(out),
        torch.get_num_threads(),
    )
    return out


def channel_affine_grad(
    gx: Tensor,  # [N, C, H, W]
    gother: Tensor | None,  # of gx's memory format
    sums: Tensor,  # [2 or 3, C]
    grad: Tensor,  # [N, C, H, W]
    x: Tensor,
    by: Affine,
    relu: bool,
    other: Tensor | None,
    other_by: Affine | None,
    out: Tensor | None,
) -> None:
    """Fills gx, gother and sums: see ops.fused.elementwise_library."""
    last = _channels_last(gx)
    grad, x = _dense(grad, last), _dense(x, last)
    other, out = _dense_or_none(other, last), _dense_or_none(out, last)
    by, other_by = _contiguous(by), None if other_by is None else _contiguous(other_by)
    workspace = _workspace(_size(x), last, sums.shape[0])
    _C.channel_affine_grad(
        ELEMENTS[x.dtype],
        _size(x),
        last,
        address(grad),
        address(x),
        _addresses(by),
        relu,
        _address_or_none(other),
        _addresses(other_by),
        _address_or_none(out),
        address(gx),
        _address_or_none(gother),
        address(sums),
        torch.get_num_threads(),
        address(workspace),
    )


def _channels_last(x: Tensor) -> bool:
    """Whether the kernels see x with its channels innermost; where both are true of it, not so."""
    if x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) or x.stride(1) == 1


def _dense(x: Tensor, last: bool) -> Tensor:
    address(x)  # before it is copied
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _dense_or_none(x: Tensor | None, last: bool) -> Tensor | None:
    return None if x is None else _dense(x, last)


def _size(x: Tensor) -> tuple[int, int, int]:
    n, channels, height, width = x.shape
    return n, channels, height * width


def _contiguous(by: Affine) -> Affine:
    return Affine(by.center.contiguous(), by.scale.contiguous(), by.shift.contiguous())


def _addresses(by: Affine | None) -> _Addresses:
    if by is None:
        return _NOTHING
    return address(by.center), address(by.scale), address(by.shift)


def _address_or_none(x: Tensor | None) -> int:
    return 0 if x is None else address(x)


def _workspace(size: tuple[int, int, int], last: bool, sums: int) -> Tensor:
    return torch.empty(_C.channel_sums_workspace(size, last, sums), dtype=torch.uint8, device="cpu")
