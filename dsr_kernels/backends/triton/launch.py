"""Triton's launchers, for GPUs where the package was built without nvcc.

The kernels take any strides, but read fast only where neighbouring positions of a plane are
neighbours in memory: tensors in other formats (channels_last, a linear layer's) are copied first.
Nothing depends on the device but speed: the work is cut up by sizes alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from triton import JITFunction, cdiv, next_power_of_2

from dsr_kernels.backends import live_taps
from dsr_kernels.backends.blocks import Expanded, block_size_of, expand
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.backends.triton import kernels
from dsr_kernels.topology import INT32_MAX, check_pattern, rows_of

PROGRAMS = 2048  # enough to fill a GPU a few times over
POSITIONS = (512, 256, 128)  # of a program of `conv`: the most that leave PROGRAMS programs
LANES = 128  # positions that a program of `grad_weight` holds at once
NONZEROS = 8  # and non-zeros, at most
LANES_PER_WARP = 128


class Tables(tuple[Tensor, ...]):
    """Index tensors derived from a pattern, as they are kept with it."""

    @property
    def bytes(self) -> int:
        return sum(table.nbytes for table in self)


def sparse_conv2d(
    out: Tensor,  # [N, O, P, Q]
    x: Tensor,  # [N, C, H, W]
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv2d(pad(x), W) + bias."""
    if (csr := _csr(crow_indices, col_indices, shape)) is not None:
        rows, values = csr[:2], values.flatten()[csr.order]
        return sparse_conv2d(out, x, values, bias, *rows, shape)
    parts = live_taps.parts_of(x.shape[2:], out.shape[2:], shape, False)
    if parts is not None:
        whole = values, bias, crow_indices, col_indices
        return live_taps.forward(sparse_conv2d, parts, out, x, *whole)
    crow, columns = patterns.plan(crow_indices, col_indices, shape.weight_shape, _checked)
    bias = None if bias is None else bias.contiguous()
    in_group = shape.rows // shape.groups, shape.weight_shape[1]
    weight = crow, columns, values.contiguous(), bias
    return _conv(out, x, weight, in_group, shape, False)


def sparse_conv2d_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,  # [blocks, block_size] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv_transpose2d(grad, W) without the padding's share: a gather by the transpose."""
    if (csr := _csr(crow_indices, col_indices, shape)) is not None:
        rows, values = csr[:2], values.flatten()[csr.order]
        return sparse_conv2d_grad_input(out, grad, values, *rows, shape)
    parts = live_taps.parts_of(out.shape[2:], grad.shape[2:], shape, True)
    if parts is not None:
        whole = values, crow_indices, col_indices
        return live_taps.grad_input(sparse_conv2d_grad_input, parts, out, grad, *whole)
    key = shape.weight_shape, shape.groups
    crow, columns, order = patterns.plan(crow_indices, col_indices, key, _transposed)
    weight = crow, columns, values.index_select(0, order), None
    return _conv(out, grad, weight, (out.shape[1], 0), shape, True)


def _conv(
    out: Tensor,
    source: Tensor,
    weight: tuple[Tensor, Tensor, Tensor, Tensor | None],  # crow, columns, values, bias
    in_group: tuple[int, int],  # rows and channels of a group of the weight
    shape: ConvShape,
    transposed: bool,
) -> Tensor:
    kernel, stride, padding, dilation = shape.kernel, shape.stride, shape.padding, shape.dilation
    source, to = _planar(source), _planar_like(out)
    batch, rows, *size = to.shape
    steps = stride if transposed else (1, 1)
    plane = [cdiv(*both) for both in zip(size, steps, strict=True)]
    classes = [min(*both) for both in zip(size, steps, strict=True)]
    positions, classes_h_w = batch * plane[0] * plane[1], classes[0] * classes[1]
    block = _largest(POSITIONS, lambda b: rows * cdiv(positions, b) * classes_h_w >= PROGRAMS)
    blocks = cdiv(positions, block)
    _run(
        kernels.conv,
        rows * blocks * classes_h_w,
        to,
        *(source, *weight, batch, rows, *in_group, blocks, *plane, classes[1]),
        *(*size, *source.shape[2:], *to.stride(), *source.stride(), *padding[::2], *dilation),
        KH=kernel[0],
        KW=kernel[1],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        TRANSPOSED=transposed,
        PADDED=any(padding) or (transposed and (*kernel, *stride) != (1, 1, 1, 1)),
        WIDE=_reach(source, plane, padding) > INT32_MAX,
        BLOCK=block,
        num_warps=cdiv(block, LANES_PER_WARP),
    )
    return out if to is out else out.copy_(to)


def sparse_conv2d_grad_weight(
    out: Tensor,  # [nnz]
    x: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = the dense weight's gradient at the non-zeros: sums of parts, in a fixed order."""
    if (csr := _csr(crow_indices, col_indices, shape)) is not None:
        found = sparse_conv2d_grad_weight(torch.empty_like(out), x, grad, *csr[:2], shape)
        return out.index_copy_(0, csr.order, found)
    parts = live_taps.parts_of(x.shape[2:], grad.shape[2:], shape, False)
    if parts is not None:
        whole = crow_indices, col_indices
        return live_taps.grad_weight(sparse_conv2d_grad_weight, parts, out, x, grad, *whole)
    (rows, in_channels, kernel_h, kernel_w), stride, padding, dilation, groups = shape
    nnz, batch = out.numel(), x.shape[0]
    if not nnz or not batch:
        return out.zero_()
    nonzeros = min(NONZEROS, next_power_of_2(cdiv(nnz, rows)))
    key = shape.weight_shape, nonzeros
    pattern = patterns.plan(crow_indices, col_indices, shape.weight_shape, _checked)
    blocks = patterns.plan(crow_indices, col_indices, key, _row_blocks)
    x, grad = _planar(x), _planar(grad)
    plane = grad.shape[2] * grad.shape[3]
    images = _images(batch, plane, LANES)
    plane_splits, images_per_split = _splits(batch, plane, images, blocks[0].numel())
    splits = plane_splits * cdiv(batch, images_per_split)
    partial = out if splits == 1 else out.new_empty(splits, nnz)
    _run(
        kernels.grad_weight,
        blocks[0].numel() * splits,
        partial,
        *(x, grad, *pattern, *blocks),
        *(nnz, batch, rows, rows // groups, in_channels),
        *(blocks[0].numel(), images, plane_splits, images_per_split, *x.shape[2:], *grad.shape[2:]),
        *(*x.stride(), *grad.stride(), *stride, *padding[::2], *dilation),
        KH=kernel_h,
        KW=kernel_w,
        NONZEROS=nonzeros,
        BLOCK=LANES,
        num_warps=4,
    )
    return out if splits == 1 else torch.sum(partial, 0, out=out)


def sparse_conv2d_grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad summed over batch and image by torch, whose sums are deterministic."""
    return torch.sum(grad, (0, 2, 3), dtype=out.dtype, out=out)


# --- how the work is cut up -----------------------------------------------------------------------


def _run(
    kernel: JITFunction,
    programs: int,
    to: Tensor,
    *args: Tensor | int | None,
    **constants: int | bool,
) -> None:
    """Launches `kernel`, which writes `to`, its first argument."""
    if programs:
        with torch.cuda.device_of(to):  # Triton launches on the current device
            kernel[(programs,)](to, *args, **constants)


def _reach(source: Tensor, plane: Sequence[int], padding: Sequence[int]) -> int:
    """More elements than a tap that falls inside can be away from the pixel of a lane."""
    _, channels, height, width = source.shape
    rows, columns = height + plane[0] + padding[0], width + plane[1] + padding[2]
    _, *strides = source.stride()
    return sum(s * size for s, size in zip(strides, (channels, rows, columns), strict=True))


def _largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The first of the descending `sizes` that fits, or the last."""
    return next((size for size in sizes if fits(size)), sizes[-1])


@functools.lru_cache(maxsize=1024)
def _images(batch: int, plane: int, lanes: int) -> int:
    """Of a slab: what fills blocks of lanes well and leaves long walks along the batch."""

    def blocks_walked(images: int) -> int:
        setup = 1  # a block's costs about as much as one step of its walk
        return cdiv(images * plane, lanes) * (cdiv(batch, images) + setup)

    return min(range(1, min(batch, max(1, 8 * lanes // plane)) + 1), key=blocks_walked)


def _splits(batch: int, plane: int, images: int, blocks: int) -> tuple[int, int]:
    """(splits of a slab, images of a split of the batch) that together make PROGRAMS programs."""
    of_plane, slabs = cdiv(images * plane, LANES), cdiv(batch, images)
    wanted = min(cdiv(PROGRAMS, blocks), cdiv(of_plane * slabs, 4))  # of four steps or more
    plane_splits = min(of_plane, wanted)
    return plane_splits, cdiv(slabs, cdiv(wanted, plane_splits)) * images


# --- memory formats -------------------------------------------------------------------------------


def _is_planar(t: Tensor) -> bool:
    """Whether neighbours along the innermost of width, height and batch are so in memory."""
    return next((t.stride(d) <= 1 for d in (3, 2, 0) if t.shape[d] > 1), True)


def _planar(t: Tensor) -> Tensor:
    if _is_planar(t):
        return t
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def _planar_like(out: Tensor) -> Tensor:
    if _is_planar(out):
        return out
    batch, channels, *plane = out.shape
    return out.new_empty(channels, batch, *plane).transpose(0, 1)


# --- what is derived from a pattern ---------------------------------------------------------------


def _csr(crow_indices: Tensor, col_indices: Tensor, shape: ConvShape) -> Expanded | None:
    """The pattern row by row, if it is one of blocks, of which these kernels know nothing."""
    size = block_size_of(crow_indices, shape.rows)
    if size == 1:
        return None
    check_pattern(shape.weight_shape, crow_indices, col_indices, size)
    return patterns.plan(crow_indices, col_indices, size, expand)


def _checked(crow_indices: Tensor, col_indices: Tensor, weight_shape: tuple[int, ...]) -> Tables:
    """The pattern itself, copied: Triton asks for an address to write to, and so would make torch
    copy index tensors at every call. Refuses a pattern that would lead out of bounds.
    """
    check_pattern(weight_shape, crow_indices, col_indices)
    return Tables((crow_indices.clone(), col_indices.clone()))


def _transposed(crow: Tensor, col: Tensor, key: tuple[tuple[int, ...], int]) -> Tables:
    """crow [C + 1] and columns [nnz] of the transpose, and which value each takes: order [nnz].

    The column of value k of row o is o * KH * KW + tap; a row's columns ascend.
    """
    (weight_shape, groups) = key
    patterns.plan(crow, col, weight_shape, _checked)
    rows, in_channels, kernel_h, kernel_w = weight_shape
    taps, row = kernel_h * kernel_w, rows_of(crow)
    if rows * taps > INT32_MAX:
        raise ValueError(
            f"weight_shape: O * KH * KW of {weight_shape} is {rows * taps}, more than the int32 "
            f"columns of its transpose can name ({INT32_MAX})"
        )
    channel = row // (rows // groups) * in_channels + col // taps
    channel, order = channel.sort(stable=True)
    starts = torch.arange(in_channels * groups + 1, device=crow.device)
    columns = (row * taps + col % taps)[order].int()
    return Tables((torch.searchsorted(channel, starts, out_int32=True), columns, order.int()))


def _row_blocks(crow: Tensor, col: Tensor, key: tuple[tuple[int, ...], int]) -> Tables:
    """(row, first non-zero) of every block of at most `nonzeros` non-zeros of one row.

    There are no more than nnz // nonzeros full ones and one other per row; those that this bound
    counts in vain have row O.
    """
    weight_shape, nonzeros = key
    patterns.plan(crow, col, weight_shape, _checked)
    starts = crow.long()
    counts = (starts.diff() + nonzeros - 1) // nonzeros
    ends = counts.cumsum(0)
    bound = col.numel() // nonzeros + min(col.numel(), counts.numel())
    block = torch.arange(bound, device=crow.device)
    row = torch.searchsorted(ends, block, right=True)
    inside = row.clamp(max=counts.numel() - 1)
    first = starts[inside] + (block - ends[inside] + counts[inside]) * nonzeros
    return Tables((row.int(), first.int()))
