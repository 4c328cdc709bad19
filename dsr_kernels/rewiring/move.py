"""One layer's change of pattern: all tensors that move, and how to undo it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dsr_kernels.backends.address import address
from dsr_kernels.backends.held import exchange
from dsr_kernels.nn import sharing
from dsr_kernels.rewiring.entry_state import EntryState, Holder, StateSlot
from dsr_kernels.rewiring.layers import Slot, SparseLayer


class Move:
    """A layer's new pattern, values, averages and optimizer state. The engine fills them.

    Args:
        after: how many entries the layer will have.
        state: what optimizers hold of its entries.
        entry_state: where more tensors [blocks, ...] to move are held.
    """

    NOTHING: ClassVar[tuple] = (0, 0, [], 0)  # the output for a layer that stays as it is

    def __init__(
        self,
        layer: SparseLayer,
        after: int,
        state: EntryState,
        entry_state: Sequence[Slot] = (),
    ) -> None:
        def successor(tensor: Tensor, size: int = after * layer.kernel) -> Tensor:
            return tensor.new_empty(size, *tensor.shape[1:])

        self.layer = layer
        self.grad = layer.weight_values.grad
        # Other objects, for the layer's own index tensors are given other data.
        self.old_pattern = layer.pattern[0].detach(), layer.pattern[1].detach()
        self.new_entries = (
            torch.empty_like(layer.pattern[0]),
            successor(layer.pattern[1], after),
        )
        self.modules = layer.modules
        self.old_values = [module.weight_values.detach() for module in self.modules]
        shared = 1 + len(layer.sharers)
        values = successor(layer.weight_values)
        self.new_values = [values] * shared + [successor(v) for v in self.old_values[shared:]]
        slots = [*state.slots, *(StateSlot(*slot) for slot in entry_state)]
        held = {id(slot.holder[slot.key]): slot.holder[slot.key] for slot in slots}
        self.moved = {  # each tensor once, though it be held twice
            key: (tensor.contiguous(), successor(tensor)) for key, tensor in held.items()
        }
        self.state: list[tuple[Holder, Any, Tensor]] = [
            (holder, key, holder[key]) for holder, key, _ in slots
        ]
        # The engine starts grown entries at 0. Where an optimizer does not, who has survived?
        self.fresh = {id(slot.holder[slot.key]): slot.fresh for slot in slots if slot.fresh}
        ones = torch.ones_like(layer.pattern[1], dtype=torch.int8) if self.fresh else None
        self.survived = None if ones is None else (ones, successor(ones))
        self.factors = [(factor, factor.holder[factor.key]) for factor in state.factors]

    def output(self, ranks: Tensor | None) -> tuple:
        """The addresses for the native plan: it writes crow and col, moves each array of
        [(from, to, bytes per entry), ...], and reads the ranks of what grows (0: random ones).
        """
        pairs = zip(self.old_values, self.new_values, strict=True)
        arrays = list({id(new): (old, new) for old, new in pairs}.values())  # each once
        arrays += self.moved.values()
        arrays += [] if self.survived is None else [self.survived]
        crow, col = self.new_entries
        moved = f"layer {self.layer.name!r}: values or optimizer state"
        return (
            address(crow),
            address(col),
            [(address(old, moved), address(new), self._entry_bytes(new)) for old, new in arrays],
            0 if ranks is None else address(ranks),
        )

    def _entry_bytes(self, tensor: Tensor) -> int:
        return self.layer.kernel * math.prod(tensor.shape[1:]) * tensor.element_size()

    def make(self) -> None:
        """Puts the new tensors in place of the old ones."""
        self._replace(self._new_pattern(), self.new_values)
        for key, fresh in self.fresh.items():
            assert self.survived is not None, "there is something fresh"
            self.moved[key][1][self.survived[1] == 0] = fresh
        for holder, key, old in self.state:
            holder[key] = self.moved[id(old)][1]
        for factor, _ in self.factors:
            factor.renew()

    def _new_pattern(self) -> tuple[Tensor, Tensor]:
        crow, col = self.new_entries
        size = self.layer.kernel
        if size == 1:
            return crow, col
        steps = torch.arange(size, dtype=col.dtype, device=col.device)
        return crow * size, (col[:, None] * size + steps).flatten()

    def undo(self) -> None:
        """Puts the old tensors back, also after half of a `make`."""
        self._replace(self.old_pattern, self.old_values)
        for holder, key, old in self.state:
            holder[key] = old
        for factor, before in self.factors:
            factor.holder[factor.key] = before
        self.layer.weight_values.grad = self.grad

    def _replace(self, pattern: tuple[Tensor, Tensor], values: list[Tensor]) -> None:
        crow, col = pattern
        with exchange:  # until those that share values have one pattern again
            for i, (module, v) in enumerate(zip(self.modules, values, strict=True)):
                # Copies: a later in-place change of one module's buffers must not change another's.
                module.replace_topology(
                    crow.clone() if i else crow, col.clone() if i else col, v, validate=False
                )


def commit(moves: list[Move]) -> None:
    """Makes all moves. If one fails, undoes all and raises what it raised."""
    made: list[Move] = []
    try:
        with sharing.looked_through():
            for move in moves:
                made.append(move)
                move.make()
    except BaseException:
        for move in reversed(made):
            move.undo()
        raise
