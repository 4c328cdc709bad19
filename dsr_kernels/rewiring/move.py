"""One layer's change of pattern: everything that moves, with what is needed to take it back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsr_kernels.rewiring.layers import SparseLayer, optimizer_state


class Move:
    """A layer's new pattern, values, averages and optimizer state, to be filled by the engine."""

    def __init__(
        self, layer: SparseLayer, nnz_after: int, optimizer: torch.optim.Optimizer | None
    ) -> None:
        def successor(tensor: Tensor) -> Tensor:
            return torch.empty(nnz_after, dtype=tensor.dtype, device=tensor.device)

        self.layer = layer
        self.grad = layer.values.grad
        self.old_pattern = layer.pattern
        self.new_pattern = (torch.empty_like(layer.pattern[0]), successor(layer.pattern[1]))
        self.modules = [layer.module]
        self.modules += [module for _, module in layer.sharers + layer.followers]
        self.old_values = [module.values.detach() for module in self.modules]
        shared = 1 + len(layer.sharers)
        values = successor(layer.values)
        self.new_values = [values] * shared + [successor(v) for v in self.old_values[shared:]]
        self.state: list[tuple[dict[str, Any], str, Tensor, Tensor]] = [
            (state, key, state[key].contiguous(), successor(state[key]))
            for state, key in optimizer_state(optimizer, layer)
        ]

    def output(self) -> tuple:
        """The addresses the native engine writes to: crow, col, [(from, to, item size), ...]."""
        pairs = zip(self.old_values, self.new_values, strict=True)
        arrays = list({id(new): (old, new) for old, new in pairs}.values())  # shared ones once
        arrays += [(old, new) for _, _, old, new in self.state]
        crow, col = self.new_pattern
        return (
            crow.data_ptr(),
            col.data_ptr(),
            [(old.data_ptr(), new.data_ptr(), new.element_size()) for old, new in arrays],
            0,
        )

    def make(self) -> None:
        self._replace(self.new_pattern, self.new_values)
        for state, key, _, new in self.state:
            state[key] = new

    def undo(self) -> None:
        self._replace(self.old_pattern, self.old_values)
        for state, key, old, _ in self.state:
            state[key] = old
        self.layer.values.grad = self.grad

    def _replace(self, pattern: tuple[Tensor, Tensor], values: list[Tensor]) -> None:
        crow, col = pattern
        for i, (module, v) in enumerate(zip(self.modules, values, strict=True)):
            # copies: a later in-place change of one module's buffers must not reach another's
            module.replace_topology(
                crow.clone() if i else crow, col.clone() if i else col, v, validate=False
            )
