"""The gradient of a dense weight, a block of rows at a time, and its largest entries."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.rewiring.layers import SparseLayer

ROW_CHUNK = 2**18  # weights (at least a row) whose gradient exists at a time: 1 MiB of float32


class Candidates(NamedTuple):
    """Free positions of the largest gradients, and these gradients' magnitudes."""

    positions: Tensor  # [count] int64, ascending
    scores: Tensor  # [count]


# Of a weight in a backward pass: x [N, C, H, W], grad [N, O, P, Q].
Use = tuple[Tensor, Tensor, ConvShape]


def largest_gradients(
    layer: SparseLayer,
    count: int,
    uses: Sequence[Use],
    groups: int,
    combine: Callable[[Tensor], None] | None = None,
) -> Candidates | None:
    """The `count` free positions of largest |gradient|, summed over the weight's uses; of blocks,
    of the largest mean. Of equal gradients the first are taken. None where a gradient is not
    finite.

    groups: `groups_of(uses)`, in all processes where `combine` overwrites each block of the
    gradient with that of all of them. Without a use of its own a process adds 0.
    """
    module = layer.module
    row_length, device = module.row_length, module.col_indices.device
    starts = module.crow_indices.tolist()
    found = Candidates(
        torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
    )
    least: float | Tensor = -1.0  # what a candidate must exceed
    size = module.block_size
    for first_row, last_row in row_chunks(module.weight_shape[0], row_length, groups, size):
        gradients = [grad_weight_rows(x, g, first_row, last_row, shape) for x, g, shape in uses]
        if not gradients:
            gradients = [module.weight_values.new_zeros(last_row - first_row, row_length)]
        gradient = functools.reduce(torch.add, gradients)
        if combine is not None:  # of one layout and type in all processes
            gradient = gradient.reshape(last_row - first_row, row_length)
            gradient = gradient.to(module.weight_values.dtype).contiguous()
            combine(gradient)
        scores = gradient.abs().reshape(-1, size, row_length)
        scores = (scores[:, 0] if size == 1 else scores.mean(1)).flatten()
        if not scores.isfinite().all():
            return None
        first, last = first_row // size, last_row // size
        begin, end = starts[first], starts[last]
        counts = module.crow_indices[first : last + 1].diff()
        rows = torch.arange(last - first, device=device).repeat_interleave(
            counts, output_size=end - begin
        )
        scores[rows * row_length + module.col_indices[begin:end]] = -1.0  # active positions
        better = (scores > least).nonzero().flatten()
        more = first * row_length + better, scores[better]
        found = best(Candidates(*map(torch.cat, zip(found, more, strict=True))), count)
        if 0 < count == found.scores.numel():
            least = found.scores.min()
    return found


def groups_of(uses: Sequence[Use]) -> int:
    """The least number of groups of rows each of which lies in one group of every use."""
    return math.lcm(*(shape.groups for _, _, shape in uses))


def row_chunks(
    rows: int, row_length: int, groups: int, block_size: int = 1
) -> list[tuple[int, int]]:
    """[first, last) rows of about ROW_CHUNK weights, whole blocks, each chunk in one group."""
    size = block_size * max(1, ROW_CHUNK // (row_length * block_size))
    group = rows // groups
    return [
        (start + first, start + min(first + size, group))
        for start in range(0, rows, group)
        for first in range(0, group, size)
    ]


def grad_weight_rows(
    x: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    first: int,
    last: int,
    shape: ConvShape,
) -> Tensor:
    """[last - first, C // groups, KH, KW], float32 (of float64: float64): the dense weight's
    gradient at these rows, which belong to one group.
    """
    with torch.autocast(x.device.type, enabled=False):  # the backward pass may be under autocast
        return _grad_weight_rows(x, grad, first, last, shape)


def _grad_weight_rows(x: Tensor, grad: Tensor, first: int, last: int, shape: ConvShape) -> Tensor:
    inputs = shape.weight_shape[1]
    group = first * shape.groups // shape.rows
    x, grad = x[:, group * inputs : (group + 1) * inputs], grad[:, first:last]
    if x.dtype != torch.float64:
        low = x.dtype != torch.float32 and x.is_cpu
        x, grad = (t.float() if low or x.dtype != grad.dtype else t for t in (x, grad))
    if math.prod(shape.kernel) == math.prod(x.shape[2:]) == 1 and not any(shape.padding):
        return (grad.flatten(1).t() @ x.flatten(1)).to(_wide(x)).view(-1, inputs, 1, 1)
    top, bottom, left, right = shape.padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    size = (last - first, inputs, *shape.kernel)
    weight = conv2d_weight(x, size, grad, shape.stride, (top, left), shape.dilation)
    return weight.to(_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def best(candidates: Candidates, count: int) -> Candidates:
    """The `count` largest scores, of equal ones the first. Positions stay ascending."""
    positions, scores = candidates
    count = min(count, scores.numel())
    if not count:
        return Candidates(positions[:0], scores[:0])
    threshold = scores.topk(count, sorted=True).values[-1]
    above, equal = scores > threshold, scores == threshold
    equal &= equal.cumsum(0) <= count - above.sum()
    chosen = above | equal
    return Candidates(positions[chosen], scores[chosen])
