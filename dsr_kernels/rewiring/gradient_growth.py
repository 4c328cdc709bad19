"""Growth where the loss gradient is largest, without a dense gradient.

The backward pass before a rewire shows each layer's input and output gradient. From them the dense
weight's gradient is computed for a block of rows at a time, and the best free positions so far are
kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.distribution import share_out
from dsr_kernels.ops import watch
from dsr_kernels.rewiring.allocation import even_trade
from dsr_kernels.rewiring.layers import KeptPattern, SparseLayer

ROW_CHUNK = 2**18  # weights (at least a row) whose gradient exists at a time: 1 MiB of float32


class Share(NamedTuple):
    """How many entries a layer will lose and gain in the coming rewire."""

    pruned: int
    grown: int


class Candidates(NamedTuple):
    """Free positions of the largest gradients, and these gradients' magnitudes."""

    positions: Tensor  # [count] int64, ascending
    scores: Tensor  # [count]


# Of a weight in a backward pass: x [N, C, H, W], grad [N, O, P, Q].
Use = tuple[Tensor, Tensor, ConvShape]


@dataclass
class _Seen:
    """What a backward pass has shown of one weight."""

    backward: int  # the number of the pass; -1: it is over
    pattern: KeptPattern  # the one whose free positions the candidates are
    uses: list[Use] | None  # kept until the rewire where more may follow; None: see `candidates`
    candidates: Candidates | None = None  # None: the gradient is not finite or not fully known


class GradientWatch:
    """Finds candidates for growth in one backward pass.

    Where the forward pass has used a weight once, the best positions are found as soon as its
    gradient is known, and nothing is kept. Where it has used a weight several times (a shared
    Parameter, a module in two places), inputs and gradients are kept until the rewire, for their
    sum decides. A layer with a use that the forward pass did not show is left alone.

    Args:
        decide: a bound method, called once in that pass: the layers' shares by their index.
    """

    def __init__(self, decide: Callable[[], dict[int, Share]]) -> None:
        self._decide = weakref.WeakMethod(decide)
        self._looks = False
        self._layers: list[SparseLayer] = []
        self._shares: dict[int, Share] = {}
        self._uses: Counter[int] = Counter()  # in forward passes since the last backward pass
        self._seen: dict[int, _Seen] = {}

    def start(self, layers: list[SparseLayer]) -> None:
        self._looks, self._layers = True, layers
        watch.watch(self)

    def stop(self) -> None:
        watch.unwatch(self)
        self._looks, self._layers = False, []
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs, or a pickle: of a method and its model, to go on as they would."""
        seen = {i: dataclasses.replace(one, backward=-1) for i, one in self._seen.items()}
        return self.__dict__ | {"_decide": self._decide(), "_seen": seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_decide": weakref.WeakMethod(state["_decide"])}
        if self._looks:
            watch.watch(self)

    def forget(self) -> None:
        """Forgets all gradients, after a rewire: the patterns they belong to are gone."""
        self._shares, self._seen = {}, {}
        self._uses.clear()

    def used(self, values: Tensor) -> None:
        recomputed = _backward_pass() >= 0  # by gradient checkpointing: counted already
        if not recomputed and (layer := self._layer_of(values)) is not None:
            self._uses[layer.index] += 1

    @torch.no_grad()
    def passed(self, values: Tensor, x: Tensor, grad: Tensor, shape: ConvShape) -> None:
        layer = self._layer_of(values)
        if layer is None:
            return
        decide = self._decide()
        if not self._shares and decide is not None:
            self._shares = decide()
        if layer.index not in self._shares:
            return  # it was frozen since
        index, backward, use = layer.index, _backward_pass(), (x, grad, shape)
        seen = self._seen.get(index)
        if seen is not None and seen.backward == backward:
            if seen.uses is None:
                seen.candidates = None  # the first use's gradient was not kept
            else:
                seen.uses.append(use)
            return
        several = self._uses.pop(index, 1) > 1
        seen = _Seen(backward, KeptPattern(layer.module), [use] if several else None)
        self._seen[index] = seen
        if not several:
            seen.candidates = largest_gradients(layer, self._shares[index].grown, [use])

    def balanced(self, layers: list[SparseLayer]) -> tuple[list[int], list[int]]:
        """(pruned, grown) of each layer: its share where its gradient is known, else (0, 0).

        Raises RuntimeError where no layer's gradient has been seen.
        """
        if layers and not self._seen:
            raise RuntimeError(
                "rewire: gradient growth found no gradient: expected a backward pass, in eager "
                "mode, in the iteration before the rewire (call `step` once for each iteration, "
                "and do not compile the sparse layers' backward)"
            )
        nothing = Share(0, 0)
        shares = [
            nothing if self._candidates(layer) is None else self._shares[layer.index]
            for layer in layers
        ]
        pruned, grown = ([share[i] for share in shares] for i in (0, 1))
        blocks = [layer.block for layer in layers]
        if len(set(blocks)) > 1:
            return even_trade(pruned, grown, blocks)
        total = min(sum(pruned), sum(grown))  # they differ where layers are left out
        return share_out(total, pruned, pruned), share_out(total, grown, grown)

    def ranks(self, layers: list[SparseLayer], grown: list[int]) -> list[Tensor | None]:
        """Of each layer [grown] int64, ascending: which of its free positions have the largest
        gradients. None where nothing grows.
        """
        ranks: list[Tensor | None] = []
        for layer, count in zip(layers, grown, strict=True):
            if not count:
                ranks.append(None)
                continue
            candidates = self._candidates(layer)
            assert candidates is not None, "`balanced` lets no other layer grow"
            positions = best(candidates, count).positions
            entries = layer.module.topology.linear_positions()
            ranks.append(positions - torch.searchsorted(entries, positions))
        return ranks

    @torch.no_grad()
    def _candidates(self, layer: SparseLayer) -> Candidates | None:
        seen = self._seen.get(layer.index)
        if seen is None:
            return None
        if not seen.pattern.is_of(layer.module):
            return None  # the pattern has changed since: a checkpoint was loaded, say
        if seen.uses is not None:
            count = self._shares[layer.index].grown
            seen.candidates, seen.uses = largest_gradients(layer, count, seen.uses), None
        return seen.candidates

    def _layer_of(self, values: Tensor) -> SparseLayer | None:
        """Found by the present address of the values: a model may be loaded or moved anytime."""
        if values.numel() == 0:
            return None
        address = values.data_ptr()
        return next((one for one in self._layers if one.weight_values.data_ptr() == address), None)


def _backward_pass() -> int:
    """The number of the running backward pass; -1: none is running."""
    return torch._C._current_graph_task_id()


def largest_gradients(layer: SparseLayer, count: int, uses: Sequence[Use]) -> Candidates | None:
    """The `count` free positions of largest |gradient|, summed over the weight's uses; of blocks,
    of the largest mean. Of equal gradients the first are taken. None where a gradient is not
    finite.
    """
    module = layer.module
    row_length, device = module.row_length, module.col_indices.device
    starts = module.crow_indices.tolist()
    found = Candidates(
        torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
    )
    least: float | Tensor = -1.0  # what a candidate must exceed
    groups = math.lcm(*(shape.groups for _, _, shape in uses))
    size = module.block_size
    for first_row, last_row in row_chunks(module.weight_shape[0], row_length, groups, size):
        gradients = (grad_weight_rows(x, g, first_row, last_row, shape) for x, g, shape in uses)
        scores = functools.reduce(torch.add, gradients).abs().reshape(-1, size, row_length)
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
