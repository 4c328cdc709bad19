"""Growth where the loss gradient is largest, without a dense gradient.

The backward pass before a rewire shows each layer's input and output gradient. From them the dense
weight's gradient is computed for a block of rows at a time, and the best free positions so far are
kept (dense_gradient.py).

Processes that train one model together see parts of one batch. There the inputs and gradients are
kept until the rewire, and each block is averaged over all of them. That is not done in the backward
pass: which layers it reaches, and when, may differ, and none may wait for what never comes.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.distribution import share_out
from dsr_kernels.ops import watch
from dsr_kernels.rewiring.allocation import even_trade
from dsr_kernels.rewiring.dense_gradient import Candidates, Use, best, groups_of, largest_gradients
from dsr_kernels.rewiring.layers import KeptPattern, SparseLayer
from dsr_kernels.rewiring.processes import Processes, processes_of

OVERWRITTEN = -2  # in place of the groups of a layer's uses


class Share(NamedTuple):
    """How many entries a layer will lose and gain in the coming rewire."""

    pruned: int
    grown: int


@dataclass
class _Seen:
    """What a backward pass has shown of one weight."""

    backward: int  # the number of the pass; -1: it is over
    pattern: KeptPattern  # the one whose free positions the candidates are
    uses: list[Use] | None  # kept until the rewire where more may follow; None: see `candidates`
    candidates: Candidates | None = None  # None: the gradient is not finite or not fully known
    by_all: bool = False  # whether the candidates are those of all processes
    versions: list[int] = field(default_factory=list)  # of the tensors of `uses`
    overwritten: bool = False  # before this was copied

    def __post_init__(self) -> None:
        self.versions = _versions(self.uses)

    def keep(self, use: Use) -> None:
        assert self.uses is not None, "uses are kept"
        self.uses.append(use)
        self.versions += _versions([use])

    @property
    def is_overwritten(self) -> bool:
        """Whether something has written to a tensor that was kept."""
        return self.overwritten or self.versions != _versions(self.uses)


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
        self._keeps = False  # whether other processes see other parts of the batch
        self._uses: Counter[int] = Counter()  # in forward passes since the last backward pass
        self._seen: dict[int, _Seen] = {}

    def start(self, layers: list[SparseLayer]) -> None:
        self._looks, self._layers = True, layers
        watch.watch(self)

    def stop(self) -> None:
        watch.unwatch(self)
        self._looks, self._layers = False, []
        self.forget()

    def looks_at(self, parameters: Iterable[Tensor]) -> bool:
        """Whether it waits for the gradient of one of these."""
        own = {id(layer.weight_values) for layer in self._layers}
        return any(id(parameter) in own for parameter in parameters)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs, or a pickle: of a method and its model, to go on as they would."""
        seen = {
            i: dataclasses.replace(one, backward=-1, overwritten=one.is_overwritten)
            for i, one in self._seen.items()
        }
        return self.__dict__ | {"_decide": self._decide(), "_seen": seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_decide": weakref.WeakMethod(state["_decide"])}
        for seen in self._seen.values():
            seen.__post_init__()  # copies count versions anew
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
            self._keeps = processes_of(self._layers) is not None
            self._shares = decide()
        if layer.index not in self._shares:
            return  # it was frozen since
        index, backward, use = layer.index, _backward_pass(), (x, grad, shape)
        seen = self._seen.get(index)
        if seen is not None and seen.backward == backward:
            if seen.uses is None:
                seen.candidates = None  # the first use's gradient was not kept
            else:
                seen.keep(use)
            return
        kept = self._uses.pop(index, 1) > 1 or self._keeps
        seen = _Seen(backward, KeptPattern(layer.module), [use] if kept else None)
        self._seen[index] = seen
        if not kept:
            count = self._shares[index].grown
            seen.candidates = largest_gradients(layer, count, [use], shape.groups)

    def balanced(self, layers: list[SparseLayer]) -> tuple[list[int], list[int]]:
        """(pruned, grown) of each layer: its share where its gradient is known, else (0, 0).

        Raises RuntimeError where no layer's gradient has been seen.
        """
        if layers and (processes := processes_of(layers)) is not None:
            self._find_together(layers, processes)
        if layers and not self._seen:
            raise RuntimeError(
                "rewire: gradient growth found no gradient: expected a backward pass, in eager "
                "mode, in the iteration before the rewire (call `step` once for each iteration, "
                "and do not compile the sparse layers' backward, nor take it by torch.func)"
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
    def _find_together(self, layers: list[SparseLayer], processes: Processes) -> None:
        """Finds the candidates by the mean gradient of all processes, in every one the same. One
        that has not used a layer takes the share that others have decided.
        """
        own = torch.tensor([self._told(layer) for layer in layers])
        seen = processes.gather(own)
        for index, place in (seen[:, :, 0] == OVERWRITTEN).nonzero().tolist()[:1]:
            raise RuntimeError(_overwritten(layers[place], f" on rank {processes.rank(index)}"))
        known, most = seen >= 0, seen.amax(0)
        if not bool(((seen == most) | ~known).all()):
            raise RuntimeError(
                "rewire: processes used a layer in other groups, or decided on other numbers in "
                "their backward passes; expected the same model and weights in all of them"
            )
        for layer, (groups, *share), is_own in zip(
            layers, most.tolist(), own[:, 0].tolist(), strict=True
        ):
            index, pattern = layer.index, KeptPattern(layer.module)
            if groups > 0:
                uses = (self._seen[index].uses or []) if is_own > 0 else []
                self._shares[index] = Share(*share)
                found = largest_gradients(layer, share[1], uses, groups, processes.mean_)
                self._seen[index] = _Seen(-1, pattern, None, found, by_all=True)
            elif index in self._seen and not self._seen[index].by_all:
                del self._seen[index]

    def _told(self, layer: SparseLayer) -> tuple[int, int, int]:
        """(groups, pruned, grown) of a layer's uses and share; -1 where this process knows none."""
        seen, share = self._seen.get(layer.index), self._shares.get(layer.index, Share(-1, -1))
        if seen is None or not seen.uses or not seen.pattern.is_of(layer.module):
            return -1, *share
        if seen.is_overwritten:
            return OVERWRITTEN, *share
        return groups_of(seen.uses), *share

    @torch.no_grad()
    def _candidates(self, layer: SparseLayer) -> Candidates | None:
        seen = self._seen.get(layer.index)
        if seen is None:
            return None
        if not seen.pattern.is_of(layer.module):
            return None  # the pattern has changed since: a checkpoint was loaded, say
        if seen.uses is not None:
            count = self._shares[layer.index].grown
            if seen.is_overwritten:
                raise RuntimeError(_overwritten(layer))
            uses, seen.uses = seen.uses, None
            seen.candidates = largest_gradients(layer, count, uses, groups_of(uses))
        return seen.candidates

    def _layer_of(self, values: Tensor) -> SparseLayer | None:
        """Found by the present address of the values: a model may be loaded or moved anytime."""
        if values.numel() == 0:
            return None
        address = values.data_ptr()
        present = ((one, one.weight_values) for one in self._layers)
        # While torch.func differentiates functional_call, layers hold tensors without an address.
        held = ((one, own) for one, own in present if not is_functorch_wrapped_tensor(own))
        return next((one for one, own in held if own.data_ptr() == address), None)


def _versions(uses: list[Use] | None) -> list[int]:
    return [tensor._version for x, grad, _ in uses or () for tensor in (x, grad)]


def _overwritten(layer: SparseLayer, where: str = "") -> str:
    return (
        f"rewire: layer {layer.name!r}: something has written to its input or to its output's "
        f"gradient{where} since the backward pass, and growth by gradient needs both until the "
        "rewire; nothing was rewired. Give the model a copy of a buffer that is filled again, or "
        "of a parameter that is a layer's input; or fill the buffer after `step`"
    )


def _backward_pass() -> int:
    """The number of the running backward pass; -1: none is running."""
    return torch._C._current_graph_task_id()
