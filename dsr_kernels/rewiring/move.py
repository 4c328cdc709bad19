"""One layer's change of pattern: everything that moves, with what is needed to take it back."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dsr_kernels.rewiring.layers import SparseLayer, optimizer_state


class Move:
    """A layer's new pattern, values, averages and optimizer state, to be filled by the engine.

    Args:
        after: how many blocks (of a layer that is not one of whole kernels: entries) it will have.
        entry_state: more tensors with a number per entry, as (dict that holds it, key).
    """

    NOTHING: ClassVar[tuple] = (0, 0, [], 0)  # the output of a layer that stays as it is

    def __init__(
        self,
        layer: SparseLayer,
        after: int,
        optimizer: torch.optim.Optimizer | None,
        entry_state: list[tuple[dict[str, Any], str]] = (),
    ) -> None:
        def successor(tensor: Tensor, size: int = after * layer.block) -> Tensor:
            return tensor.new_empty(size, *tensor.shape[1:])

        self.layer = layer
        self.grad = layer.weight_values.grad
        self.old_pattern = layer.pattern
        self.new_blocks = (
            torch.empty_like(layer.pattern[0]),
            successor(layer.pattern[1], after),
        )
        self.modules = [layer.module]
        self.modules += [module for _, module in layer.sharers + layer.followers]
        self.old_values = [module.weight_values.detach() for module in self.modules]
        shared = 1 + len(layer.sharers)
        values = successor(layer.weight_values)
        self.new_values = [values] * shared + [successor(v) for v in self.old_values[shared:]]
        held = [*optimizer_state(optimizer, layer), *entry_state]
        self.state: list[tuple[dict[str, Any], str, Tensor, Tensor]] = [
            (state, key, state[key].contiguous(), successor(state[key])) for state, key in held
        ]

    def output(self, ranks: Tensor | None) -> tuple:
        """The addresses the native engine writes to: crow, col, [(from, to, item size), ...], and
        where it reads which free positions grow.
        """
        pairs = zip(self.old_values, self.new_values, strict=True)
        arrays = list({id(new): (old, new) for old, new in pairs}.values())  # shared ones once
        arrays += [(old, new) for _, _, old, new in self.state]
        crow, col = self.new_blocks
        size = self.layer.block
        return (
            crow.data_ptr(),
            col.data_ptr(),
            [(old.data_ptr(), new.data_ptr(), size * new.element_size()) for old, new in arrays],
            0 if ranks is None else ranks.data_ptr(),
        )

    def make(self) -> None:
        self._replace(self._new_pattern(), self.new_values)
        for state, key, _, new in self.state:
            state[key] = new

    def _new_pattern(self) -> tuple[Tensor, Tensor]:
        crow, col = self.new_blocks
        size = self.layer.block
        if size == 1:
            return crow, col
        steps = torch.arange(size, dtype=col.dtype, device=col.device)
        return crow * size, (col[:, None] * size + steps).flatten()

    def undo(self) -> None:
        self._replace(self.old_pattern, self.old_values)
        for state, key, old, _ in self.state:
            state[key] = old
        self.layer.weight_values.grad = self.grad

    def _replace(self, pattern: tuple[Tensor, Tensor], values: list[Tensor]) -> None:
        crow, col = pattern
        for i, (module, v) in enumerate(zip(self.modules, values, strict=True)):
            # copies: a later in-place change of one module's buffers must not reach another's
            module.replace_topology(
                crow.clone() if i else crow, col.clone() if i else col, v, validate=False
            )


def commit(moves: list[Move]) -> None:
    """Makes all moves or, if one fails, none."""
    made: list[Move] = []
    try:
        for move in moves:
            made.append(move)
            move.make()
    except BaseException:
        for move in reversed(made):
            move.undo()
        raise
