"""The Triton kernels behind triton_launch: convolutions that gather, and the weight gradient.

A position of a plane [H, W] is one lane. Element offsets are counted in 64 bits. Integers are never
specialized on, so a kernel is compiled once for its types and constants, not for every layer.
"""

from __future__ import annotations

import triton
import triton.language as tl

_CONV_SIZES = (
    "batch",
    "rows",
    "rows_per_group",
    "channels_per_group",
    "blocks",
    "height",
    "width",
    "classes_w",
    "to_height",
    "to_width",
    "from_height",
    "from_width",
    "to_n",
    "to_c",
    "to_h",
    "to_w",
    "from_n",
    "from_c",
    "from_h",
    "from_w",
    "top",
    "left",
    "dilation_h",
    "dilation_w",
)


@triton.jit
def _tap(column, KH: tl.constexpr, KW: tl.constexpr):
    """(channel, kh, kw) of a column index (channel * KH + kh) * KW + kw."""
    column = column.to(tl.uint32, bitcast=True)  # no sign: division is one multiplication
    kernel_row, kw = column // KW, column % KW
    channel, kh = kernel_row // KH, kernel_row % KH
    return channel.to(tl.int32), kh.to(tl.int32), kw.to(tl.int32)


@triton.jit
def _within(index, size):
    """0 <= index < size at one comparison: negative numbers are large ones without a sign."""
    return index.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit(do_not_specialize=_CONV_SIZES)
def conv(
    to,  # [N, rows, to_height, to_width], written
    source,  # [N, C, from_height, from_width]
    crow,  # [rows + 1]
    columns,  # [nnz] (c * KH + kh) * KW + kw, c within the row's group
    values,  # [nnz]; their type is the accumulator's
    bias,  # [rows] or None
    batch,
    rows,
    rows_per_group,
    channels_per_group,
    blocks,  # of positions, per class
    height,  # positions of a class
    width,
    classes_w,
    to_height,
    to_width,
    from_height,
    from_width,
    to_n,
    to_c,
    to_h,
    to_w,
    from_n,
    from_c,
    from_h,
    from_w,
    top,
    left,
    dilation_h,
    dilation_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # grad-input: the stride is in `to`, not in `source`
    PADDED: tl.constexpr,  # whether a tap may fall outside of `source`
    WIDE: tl.constexpr,  # whether offsets within an image need 64 bits
    BLOCK: tl.constexpr,
):
    """to[n, row, i, j] = bias[row] + sum over the row's non-zeros of value * source[n, c, .., ..].

    One program: one row, BLOCK positions. A stride in `to` splits it into STRIDE_H * STRIDE_W
    classes, each a convolution of stride 1 with the taps that reach it; a program has one class.
    """
    program = tl.program_id(0)  # rows run fastest: neighbours read the same part of `source`
    row = program % rows
    block = program // rows % blocks
    plane_class = program // rows // blocks
    class_h, class_w = plane_class // classes_w, plane_class % classes_w

    plane = height * width
    first = block.to(tl.int64) * BLOCK
    first_image = first // plane
    position = (first - first_image * plane).to(tl.int32) + tl.arange(0, BLOCK)
    n = first_image + position // plane
    i, j = position % plane // width, position % width
    if TRANSPOSED:
        to_i, to_j = i * STRIDE_H + class_h, j * STRIDE_W + class_w
    else:
        to_i, to_j = i, j
        i, j = i * STRIDE_H, j * STRIDE_W
    held = (n < batch) & (to_i < to_height) & (to_j < to_width)

    # Lanes beyond the last image read the last image, so that no mask is needed where no tap pads.
    pixel = source + tl.minimum(n, batch - 1) * from_n
    pixel += i.to(tl.int64) * from_h + j.to(tl.int64) * from_w
    first_channel = row // rows_per_group * channels_per_group
    total = tl.zeros([BLOCK], values.dtype.element_ty)
    if bias is not None:
        total += tl.load(bias + row)
    for k in tl.range(tl.load(crow + row), tl.load(crow + row + 1), loop_unroll_factor=4):
        channel, kh, kw = _tap(tl.load(columns + k), KH, KW)
        if TRANSPOSED:
            below, right = class_h + top - kh * dilation_h, class_w + left - kw * dilation_w
            reaches = (below % STRIDE_H == 0) & (right % STRIDE_W == 0)
            below, right = below // STRIDE_H, right // STRIDE_W
        else:
            below, right = kh * dilation_h - top, kw * dilation_w - left
        channel += first_channel
        if WIDE:
            channel, down, across = channel.to(tl.int64), below.to(tl.int64), right.to(tl.int64)
        else:
            down, across = below, right
        offset = channel * from_c + down * from_h + across * from_w
        if PADDED:
            inside = _within(i + below, from_height) & _within(j + right, from_width)
            if TRANSPOSED:
                inside &= reaches
            read = tl.load(pixel + offset, mask=inside, other=0)
        else:
            read = tl.load(pixel + offset)
        total += tl.load(values + k) * read.to(total.dtype)
    where = n * to_n + row.to(tl.int64) * to_c
    where += to_i.to(tl.int64) * to_h + to_j.to(tl.int64) * to_w
    tl.store(to + where, total, mask=held)


_GRAD_WEIGHT_SIZES = (
    "nnz",
    "batch",
    "rows",
    "rows_per_group",
    "channels_per_group",
    "blocks",
    "images",
    "plane_splits",
    "images_per_split",
    "height",
    "width",
    "out_height",
    "out_width",
    "x_n",
    "x_c",
    "x_h",
    "x_w",
    "grad_n",
    "grad_c",
    "grad_h",
    "grad_w",
    "stride_h",
    "stride_w",
    "top",
    "left",
    "dilation_h",
    "dilation_w",
)


@triton.jit(do_not_specialize=_GRAD_WEIGHT_SIZES)
def grad_weight(
    partial,  # [splits, nnz], written; its type is the accumulator's
    x,  # [N, C, height, width]
    grad,  # [N, rows, out_height, out_width]
    crow,  # [rows + 1]
    columns,  # [nnz]
    block_rows,  # [blocks]: the row of a block of non-zeros, `rows` where there is no block
    block_firsts,  # [blocks]: its first non-zero
    nnz,
    batch,
    rows,
    rows_per_group,
    channels_per_group,
    blocks,
    images,  # of a slab
    plane_splits,
    images_per_split,  # a multiple of `images`
    height,
    width,
    out_height,
    out_width,
    x_n,
    x_c,
    x_h,
    x_w,
    grad_n,
    grad_c,
    grad_h,
    grad_w,
    stride_h,
    stride_w,
    top,
    left,
    dilation_h,
    dilation_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    NONZEROS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partial[split, k] = the split's share of grad[:, row of k] . x[:, channel of k, shifted].

    One program: NONZEROS non-zeros of one row, one split. The batch is cut into slabs of `images`,
    the positions of a slab into blocks of BLOCK lanes; a program walks along the batch with its
    lanes in place, so where they read and what is padding is worked out once per block.
    """
    program = tl.program_id(0)
    block, split = program % blocks, program // blocks
    row = tl.load(block_rows + block)
    if row >= rows:
        return
    k = tl.load(block_firsts + block) + tl.arange(0, NONZEROS)
    held = k < tl.load(crow + row + 1)
    channel, kh, kw = _tap(tl.load(columns + k, mask=held, other=0), KH, KW)
    channel += row // rows_per_group * channels_per_group
    below, right = kh * dilation_h - top, kw * dilation_w - left
    tap = channel.to(tl.int64) * x_c + below.to(tl.int64) * x_h + right.to(tl.int64) * x_w

    plane, plane_split = out_height * out_width, split % plane_splits
    x_step, grad_step = x_n.to(tl.int64), grad_n.to(tl.int64)
    begin = split // plane_splits * images_per_split
    end = tl.minimum(begin + images_per_split, batch)
    total = tl.zeros([NONZEROS, BLOCK], partial.dtype.element_ty)
    for first in range(plane_split * BLOCK, images * plane, plane_splits * BLOCK):
        lane = first + tl.arange(0, BLOCK)
        n, p, q = lane // plane, lane % plane // out_width, lane % out_width
        i, j = p * stride_h, q * stride_w
        inside = _within(i[None, :] + below[:, None], height) & held[:, None]
        inside &= _within(j[None, :] + right[:, None], width)
        image, there = n.to(tl.int64), row.to(tl.int64) * grad_c
        there += image * grad_step + p.to(tl.int64) * grad_h + q.to(tl.int64) * grad_w
        pixel = image * x_step + i.to(tl.int64) * x_h + j.to(tl.int64) * x_w
        here = pixel[None, :] + tap[:, None]
        for at in range(begin, end, images):
            alive = (lane < images * plane) & (at + n < end)
            g = tl.load(grad + (there + at * grad_step), mask=alive, other=0)
            read = tl.load(x + (here + at * x_step), mask=inside & alive[None, :], other=0)
            total += g.to(total.dtype)[None, :] * read.to(total.dtype)
    result = partial + (split.to(tl.int64) * nnz + k)
    tl.store(result, tl.sum(total, axis=1), mask=held)
