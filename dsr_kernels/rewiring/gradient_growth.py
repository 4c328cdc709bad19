"""Growth where the loss gradient is largest, without a dense gradient.

In the backward pass of an iteration that a rewire follows, each layer's input and output gradient
pass by. From them the dense weight's gradient is computed for a block of rows at a time, and the
best free positions so far are kept.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from dsr_kernels.distribution import share_out
from dsr_kernels.ops import watch
from dsr_kernels.rewiring.layers import Pattern, SparseLayer

ROW_BLOCK = 2**18  # weights whose gradient exists at a time, at least a row: 1 MiB of float32


class Share(NamedTuple):
    """What a layer is to lose and to gain in the coming rewire."""

    pruned: int
    grown: int


class Candidates(NamedTuple):
    """The free positions of largest gradient, ascending, and these gradients' magnitudes."""

    positions: Tensor  # [count] int64
    scores: Tensor  # [count]


Use = tuple  # of a weight in a backward pass: x [N, C, H, W], grad [N, O, P, Q], *shape


@dataclass
class _Seen:
    """What a backward pass has shown of one weight."""

    backward: int  # numbers the pass
    pattern: Pattern  # a copy: that of which the candidates are
    uses: list[Use] | None  # kept until the rewire where there may be more; None: see `candidates`
    candidates: Candidates | None = None  # None: its gradient is not finite, or not wholly known


class GradientWatch:
    """Finds candidates for growth in one backward pass.

    A weight that the forward pass has used once needs nothing to be kept: when its gradient comes
    by, the best positions are found. Of one used several times (a shared Parameter, a module in two
    places) inputs and gradients are kept until the rewire, for their sum decides. Where that use
    was not seen beforehand, the layer sits out.

    Args:
        decide: a method, called once in that pass; gives the layers' shares by their index.
    """

    def __init__(self, decide: Callable[[], dict[int, Share]]) -> None:
        self._decide = weakref.WeakMethod(decide)
        self._layers: list[SparseLayer] = []
        self._shares: dict[int, Share] = {}
        self._uses: Counter[int] = Counter()  # in forward passes since the last backward pass
        self._seen: dict[int, _Seen] = {}

    def start(self, layers: list[SparseLayer]) -> None:
        self._layers = layers
        watch.watch(self)

    def stop(self) -> None:
        watch.unwatch(self)
        self._layers = []
        self.forget()

    def forget(self) -> None:
        """After a rewire: what has been seen is of patterns that are no more."""
        self._shares, self._seen = {}, {}
        self._uses.clear()

    def used(self, values: Tensor) -> None:
        recomputed = _backward_pass() >= 0  # by gradient checkpointing: counted already
        if not recomputed and (layer := self._layer_of(values)) is not None:
            self._uses[layer.index] += 1

    @torch.no_grad()
    def passed(self, values: Tensor, x: Tensor, grad: Tensor, *shape) -> None:
        layer = self._layer_of(values)
        if layer is None:
            return
        if not self._shares:
            self._shares = self._decide()()
        if layer.index not in self._shares:
            return  # frozen since
        index, backward, use = layer.index, _backward_pass(), (x, grad, *shape)
        seen = self._seen.get(index)
        if seen is not None and seen.backward == backward:
            if seen.uses is None:
                seen.candidates = None  # the first use's gradient is gone
            else:
                seen.uses.append(use)
            return
        several = self._uses.pop(index, 1) > 1
        pattern = tuple(part.clone() for part in layer.pattern)
        seen = self._seen[index] = _Seen(backward, pattern, [use] if several else None)
        if not several:
            seen.candidates = largest_gradients(layer, self._shares[index].grown, [use])

    def balanced(self, layers: list[SparseLayer]) -> tuple[list[int], list[int]]:
        """(pruned, grown) of each layer: its share where its gradient is known, else nothing.

        Raises RuntimeError where no layer's gradient has been seen.
        """
        if layers and not self._seen:
            raise RuntimeError(
                "rewire: gradient growth found no gradient: expected a backward pass, in eager "
                "mode, in the iteration that the schedule lets a rewire follow (call `step` once "
                "for each iteration, and do not compile the sparse layers' backward)"
            )
        nothing = Share(0, 0)
        shares = [
            nothing if self._candidates(layer) is None else self._shares[layer.index]
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
            positions = best(self._candidates(layer), count).positions
            entries = layer.module.topology.linear_positions()
            ranks.append(positions - torch.searchsorted(entries, positions))
        return ranks

    @torch.no_grad()
    def _candidates(self, layer: SparseLayer) -> Candidates | None:
        seen = self._seen.get(layer.index)
        if seen is None:
            return None
        if not all(map(torch.equal, seen.pattern, layer.pattern)):
            return None  # a checkpoint was loaded since, say
        if seen.uses is not None:
            count = self._shares[layer.index].grown
            seen.candidates, seen.uses = largest_gradients(layer, count, seen.uses), None
        return seen.candidates

    def _layer_of(self, values: Tensor) -> SparseLayer | None:
        """By where the values are now: a model may be loaded or moved at any time."""
        if values.numel() == 0:
            return None
        address = values.data_ptr()
        return next((one for one in self._layers if one.weight_values.data_ptr() == address), None)


def _backward_pass() -> int:
    """The number of the backward pass that is running, -1: none is."""
    return torch._C._current_graph_task_id()


def largest_gradients(layer: SparseLayer, count: int, uses: Sequence[Use]) -> Candidates | None:
    """The `count` free positions of largest |gradient|, summed over the weight's uses; of equal
    ones the first.

    None where a gradient is not finite.
    """
    module = layer.module
    row_length, device = module.row_length, module.col_indices.device
    starts = module.crow_indices.tolist()
    found = Candidates(
        torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
    )
    least = -1.0  # what a candidate must exceed
    groups = math.lcm(*(groups for *_, groups in uses))
    for first, last in row_blocks(module.weight_shape[0], row_length, groups):
        gradient = sum(grad_weight_rows(x, grad, first, last, *shape) for x, grad, *shape in uses)
        scores = gradient.abs().flatten()
        if not scores.isfinite().all():
            return None
        begin, end = starts[first], starts[last]
        counts = module.crow_indices[first : last + 1].diff()
        rows = torch.arange(last - first, device=device).repeat_interleave(
            counts, output_size=end - begin
        )
        scores[rows * row_length + module.col_indices[begin:end]] = -1.0  # no candidates: active
        better = (scores > least).nonzero().flatten()
        block = first * row_length + better, scores[better]
        found = best(Candidates(*map(torch.cat, zip(found, block, strict=True))), count)
        if 0 < count == found.scores.numel():
            least = found.scores.min()
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
    with torch.autocast(x.device.type, enabled=False):  # it may be on around the backward pass
        return _grad_weight_rows(
            x, grad, first, last, weight_shape, stride, padding, dilation, groups
        )


def _grad_weight_rows(
    x, grad, first, last, weight_shape, stride, padding, dilation, groups
) -> Tensor:
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
    """The `count` largest scores, of equal ones the first; positions stay in ascending order."""
    positions, scores = candidates
    count = min(count, scores.numel())
    if not count:
        return Candidates(positions[:0], scores[:0])
    cut = scores.topk(count, sorted=True).values[-1]
    above, equal = scores > cut, scores == cut
    equal &= equal.cumsum(0) <= count - above.sum()
    chosen = above | equal
    return Candidates(positions[chosen], scores[chosen])
