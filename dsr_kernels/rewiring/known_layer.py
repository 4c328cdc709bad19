"""What is known of a layer beside its optimizers: its pattern, and the state that belongs to it.

Optimizers load in many ways: torch's puts another dict in place of `state`, others put another dict
or other tensors into it. State that came in such a way is told from the state that was there by
what it is: another object than at the last look.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsr_kernels.nn import SparseModule
from dsr_kernels.rewiring.entry_state import Holder
from dsr_kernels.rewiring.layers import KeptPattern, SparseLayer
from dsr_kernels.topology import Topology


class _Noted(NamedTuple):
    """What a table held of the parameter when it was last looked at."""

    table: Holder
    holder: Holder  # the parameter's own dict, or the table itself
    tensors: dict[Any, Tensor]  # as objects: they are compared, not read


class KnownLayer:
    """What was so of a layer when it was last looked at. It does not keep the module alive."""

    def __init__(self, layer: SparseLayer) -> None:
        self.name = layer.name
        self.parameter: nn.Parameter = layer.weight_values
        self._module = weakref.ref(layer.module)
        self._noted: list[_Noted] = []
        self._steps = 0  # that were begun until then
        self.note_pattern()

    @property
    def module(self) -> SparseModule:
        module = self._module()
        assert module is not None, "`is_used` was asked before"
        return module

    @property
    def is_used(self) -> bool:
        """Whether the module lives and its parameter is still the one known."""
        module = self._module()
        return module is not None and module._parameters.get("weight_values") is self.parameter

    def note_pattern(self) -> None:
        """The state belongs to the present pattern."""
        self.pattern = KeptPattern(self.module)
        self._col = self.module.col_indices
        self._version = _version(self._col)

    @property
    def changed(self) -> bool:
        """Whether the pattern may have changed."""
        col = self.module.col_indices
        return col is not self._col or _version(col) != self._version or col.is_inference()

    def note_state(self, tables: Iterable[Holder], steps: int, rebound: set[Any]) -> None:
        """What the tables hold now belongs to the known pattern."""
        self._steps, self._noted = steps, []
        for table in tables:
            held = table.get(self.parameter)
            if held is None:
                continue
            own = isinstance(held, MutableMapping)
            items = held.items() if own else [(self.parameter, held)]
            tensors = {k: v for k, v in items if isinstance(v, Tensor) and k not in rebound}
            self._noted.append(_Noted(table, held if own else table, tensors))

    def note_moved(self, holder: Holder, key: Any) -> None:
        """This tensor has come from the one that was there."""
        for noted in self._noted:
            if noted.holder is holder and key in noted.tensors:
                noted.tensors[key] = holder[key]

    def replaced_keys(self) -> set[Any]:
        """Under which keys there are other tensors than at the last look, in the same dicts."""
        return {
            key
            for noted in self._noted
            for key, tensor in noted.tensors.items()
            if isinstance(now := noted.holder.get(key), Tensor) and now is not tensor
        }

    def has_stayed(
        self, holder: Holder, key: Any, *, loaded: bool, steps: int, rebound: set[Any]
    ) -> bool:
        """Whether a tensor belongs to the known pattern. If not, it was loaded since.

        loaded: whether an optimizer has got another `state` since the last look.
        steps: how many were begun until now: they make state.
        rebound: keys under which steps put other tensors.
        """
        if self._was_there(holder, key, loaded, steps, rebound):
            return True
        # What has the old size was made for the old pattern, unless it came with a new `state`.
        old, new, now = self.pattern.indices[1].numel(), self.module.blocks, holder[key]
        return not loaded and old != new and isinstance(now, Tensor) and now.shape[:1] == (old,)

    def _was_there(
        self, holder: Holder, key: Any, loaded: bool, steps: int, rebound: set[Any]
    ) -> bool:
        noted = next((one for one in self._noted if one.holder is holder), None)
        if noted is None:
            replaced = any(self._is_gone(one) for one in self._noted)
            return not loaded and not replaced and steps > self._steps
        if key in rebound:
            return True
        before = noted.tensors.get(key)
        return steps > self._steps if before is None else before is holder[key]

    def _is_gone(self, noted: _Noted) -> bool:
        """Whether its table has another dict for the parameter."""
        held = noted.table.get(self.parameter)
        return noted.holder is not noted.table and held is not noted.holder

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_module": self._module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_module": weakref.ref(state["_module"])}


class Where:
    """Where the entries of a new pattern were in the old one."""

    def __init__(self, known: KnownLayer) -> None:
        module = known.module
        crow, col = (t.to(module.col_indices.device) for t in known.pattern.indices)
        old = Topology(module.weight_shape, crow, col, module.block_size).linear_positions()
        new = known.module.topology.linear_positions()
        self.source = torch.searchsorted(old, new).clamp_(max=max(old.numel() - 1, 0))
        if old.numel():
            self.survived = old[self.source] == new
        else:
            self.survived = torch.zeros_like(new, dtype=torch.bool)

    def move(self, tensor: Tensor, fresh: float) -> Tensor:
        moved = tensor.new_full((self.source.numel(), *tensor.shape[1:]), fresh)
        moved[self.survived] = tensor[self.source[self.survived]]
        return moved


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
