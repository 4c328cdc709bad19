"""Growth where the loss gradient is largest, without a dense gradient.

In the backward pass of an iteration that a rewire follows, each layer's input and output gradient
pass by. From them the dense weight's gradient is computed for a block of rows at a time, and the
best free positions so far are kept.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from dsr_kernels import gradients
from dsr_kernels.rewiring.allocation import share_out
from dsr_kernels.rewiring.layers import SparseLayer

ROW_BLOCK = 2**18  # weights whose gradient exists at a time, at least a row: 1 MiB of float32


class Share(NamedTuple):
    """What a layer is to lose and to gain in the coming rewire."""

    pruned: int
    grown: int


class Candidates(NamedTuple):
    """The free positions of largest gradient, ascending, and these gradients' magnitudes."""

    positions: Tensor  # [count] int64
    scores: Tensor  # [count]


class GradientWatch:
    """Finds candidates for growth in one backward pass.

    Args:
        decide: called once in that pass; gives the layers' shares by their index.
    """

    def __init__(self, decide: Callable[[], dict[int, Share]]) -> None:
        self._decide = weakref.WeakMethod(decide)
        self._watched: list[Tensor] = []
        self._shares: dict[int, Share] = {}
        self._found: dict[int, Candidates | None] = {}  # None: its gradient is not finite

    def start(self, layers: list[SparseLayer]) -> None:
        me = weakref.ref(self)
        for layer in layers:
            self._watched.append(layer.values.detach())
            gradients.watch(self._watched[-1], _watcher(me, layer))

    def stop(self) -> None:
        for values in self._watched:
            gradients.unwatch(values)
        self._watched, self._shares, self._found = [], {}, {}

    def __del__(self) -> None:
        self.stop()

    @torch.no_grad()
    def see(self, layer: SparseLayer, x: Tensor, grad: Tensor, *shape) -> None:
        if not self._shares:
            self._shares = self._decide()()
        if layer.index not in self._shares:
            return  # frozen since
        count = self._shares[layer.index].grown
        self._found[layer.index] = largest_gradients(layer, count, x, grad, *shape)

    def balanced(self, layers: list[SparseLayer]) -> tuple[list[int], list[int]]:
        """(pruned, grown) of each layer: its share where its gradient is known, else nothing.

        Raises RuntimeError where no layer's gradient has been seen.
        """
        if not self._found:
            raise RuntimeError(
                "rewire: gradient growth found no gradient: expected a backward pass, in eager "
                "mode, in the iteration that the schedule lets a rewire follow (call `step` once "
                "for each iteration, and do not compile the sparse layers' backward)"
            )
        nothing = Share(0, 0)
        shares = [
            self._shares[layer.index] if self._found.get(layer.index) is not None else nothing
            for layer in layers
        ]
        pruned, grown = ([share[i] for share in shares] for i in (0, 1))
        total = min(sum(pruned), sum(grown))  # they differ where layers sit out
        return share_out(total, pruned, pruned), share_out(total, grown, grown)

    def ranks(self, layers: list[SparseLayer], grown: list[int]) -> list[Tensor | None]:
        """Of each layer's free positions the `grown` best ones, as ranks among them, ascending."""
        ranks: list[Tensor | None] = []
        for layer, count in zip(layers, grown, strict=True):
            if not count:
                ranks.append(None)
                continue
            positions = best(self._found[layer.index], count).positions
            entries = layer.module.topology.linear_positions()
            ranks.append(positions - torch.searchsorted(entries, positions))
        return ranks


def _watcher(watch: weakref.ref, layer: SparseLayer) -> Callable:
    def see(*args) -> None:
        if (alive := watch()) is not None:
            alive.see(layer, *args)

    return see


def largest_gradients(
    layer: SparseLayer, count: int, x: Tensor, grad: Tensor, *shape
) -> Candidates | None:
    """The `count` free positions of largest |gradient|, of equal ones the first.

    None where a gradient is not finite.
    """
    row_length = layer.module.row_length
    starts = layer.module.crow_indices.tolist()
    col = layer.module.col_indices
    found = Candidates(
        torch.empty(0, dtype=torch.int64, device=x.device), torch.empty(0, device=x.device)
    )
    for first, last in row_blocks(layer.module.weight_shape[0], row_length, shape[4]):
        scores = grad_weight_rows(x, grad, first, last, *shape).abs().flatten()
        if not scores.isfinite().all():
            return None
        begin, end = starts[first], starts[last]
        counts = layer.module.crow_indices[first : last + 1].diff()
        rows = torch.arange(last - first, device=x.device).repeat_interleave(
            counts, output_size=end - begin
        )
        scores[rows * row_length + col[begin:end]] = -1.0  # active ones are no candidates
        positions = torch.arange(first * row_length, last * row_length, device=x.device)
        block = best(Candidates(positions, scores), count)
        found = best(
            Candidates(*(torch.cat(pair) for pair in zip(found, block, strict=True))), count
        )
    return found


def row_blocks(rows: int, row_length: int, groups: int) -> list[tuple[int, int]]:
    """[first, last) rows of blocks of about ROW_BLOCK weights, each within one group."""
    size = max(1, ROW_BLOCK // row_length)
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
    weight_shape: tuple[int, ...],  # (O, C // groups, KH, KW)
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],  # top, bottom, left, right
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """[last - first, C // groups, KH, KW] float: the dense weight's gradient at these rows, which
    belong to one group.
    """
    rows, inputs, *kernel = weight_shape
    group = first * groups // rows
    x, grad = x[:, group * inputs : (group + 1) * inputs], grad[:, first:last]
    if x.dtype != torch.float64:
        low = x.dtype != torch.float32 and x.is_cpu
        x, grad = (t.float() if low or x.dtype != grad.dtype else t for t in (x, grad))
    if math.prod(kernel) == math.prod(x.shape[2:]) == 1 and not any(padding):
        return (grad.flatten(1).t() @ x.flatten(1)).to(_wide(x)).view(-1, inputs, 1, 1)
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    size = (last - first, inputs, *kernel)
    return conv2d_weight(x, size, grad, tuple(stride), (top, left), tuple(dilation)).to(_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def best(candidates: Candidates, count: int) -> Candidates:
    """The `count` largest scores, of equal ones the first; positions stay in ascending order.

    Candidates of negative score are none.
    """
    positions, scores = candidates
    free = scores >= 0
    count = min(count, int(free.sum()))
    if not count:
        return Candidates(positions[:0], scores[:0])
    cut = scores.topk(count, sorted=True).values[-1]
    above, equal = scores > cut, scores == cut
    equal &= equal.cumsum(0) <= count - above.sum()
    chosen = above | equal
    return Candidates(positions[chosen], scores[chosen])
