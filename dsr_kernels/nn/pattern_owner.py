"""PatternOwner: a module whose index tensors nobody else may write to.

`crow_indices` and `col_indices` are buffers, so that they are saved, moved and broadcast like any.
The module's values belong to the pattern that it has set itself, loaded or adopted. Where something
else has changed the buffers, values and pattern no longer belong together: that is refused at the
next call, by the kernels, and when the module is saved, copied, moved or rewired.

The tensors stay the same objects when the pattern changes, as a Parameter does. So whoever holds
the module's tensors, such as a trace, has either all of the old pattern or all of the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.patterns import Pattern, patterns
from dsr_kernels.topology import check_pattern


class PatternOwner(nn.Module):
    """Holds `crow_indices` [O + 1], `col_indices` [nnz] (int32), `dense_shape` [2, 3 or 4] (int64)
    and what it knows of them.
    """

    weight_shape: tuple[int, ...]
    crow_indices: Tensor
    col_indices: Tensor
    # The dense weight's shape travels with the tensors: a checkpoint of another one is seen.
    dense_shape: Tensor
    times_given: int = 0  # the weight, by a load or replace_topology; versions count more than that
    _owned: Pattern | None = None
    _pattern_pending: bool = False  # nothing has been drawn or loaded since it was on meta
    _name: str = ""  # in its model, as far as it is known

    def label(self) -> str:
        """What an error message calls this layer: its full name where that is known."""
        if self._name:
            return f"layer {self._name!r}"
        return f"{type(self).__name__} of weight shape {self.weight_shape}"

    def know_name(self, name: str) -> None:
        """Learns its name in a model, for error messages. A part of a model knows less of it."""
        if name and not self._name.endswith(f".{name}"):
            self._name = name

    def pattern(self) -> Pattern:
        """The present pattern, as an object that never changes.

        It is the same object as long as the pattern is the same. Raises RuntimeError where
        something else than the module has written to its index tensors, ValueError where they have
        been replaced by what is no pattern, or are on the meta device.
        """
        crow, col = self.crow_indices, self.col_indices
        if not (_is_plain(crow) and _is_plain(col)):
            raise ValueError(f"{self.label()}: it has no pattern, its tensors are on {crow.device}")
        found = patterns.find(crow, col)
        return found if found is self._owned else self.adopt_pattern()

    def adopt_pattern(self) -> Pattern:
        """Declares that the values belong to what the index tensors hold now.

        For whoever has written to both. Raises ValueError for what is no pattern.
        """
        if self._is_vacant():
            raise ValueError(
                f"{self.label()}: its pattern has not been loaded yet, nor drawn; use "
                "load_state_dict or reset_parameters"
            )
        try:
            check_pattern(self.weight_shape, self.crow_indices, self.col_indices)
        except ValueError as error:
            raise ValueError(f"{self.label()}: {error}") from None
        self._own()
        self._pattern_pending = False
        assert self._owned is not None
        return self._owned

    def _own(self) -> None:
        """Takes what the index tensors hold for this module's pattern."""
        crow, col = self.crow_indices, self.col_indices
        plain = _is_plain(crow) and _is_plain(col)
        if plain and self.dense_shape.is_meta:  # built there, and given tensors since
            self._set_dense_shape()
        self._owned = patterns.own(crow, col, self, self._owned) if plain else None

    @torch.no_grad()
    def _vacate(self) -> None:
        """Leaves the pattern to be loaded, tensor by tensor perhaps, or drawn. Until then the index
        tensors hold -1 and not what their memory did: that may be the pattern of another layer.
        """
        self._owned, self._pattern_pending = None, True
        with torch.inference_mode(False):
            for index in (self.crow_indices, self.col_indices):
                index.fill_(-1)

    def _is_vacant(self) -> bool:
        """Whether nothing has been loaded or drawn since `_vacate`."""
        crow = self.crow_indices
        return self._pattern_pending and (not _is_plain(crow) or bool((crow < 0).all()))

    def _verify(self) -> None:
        """Raises RuntimeError where something else has written to the index tensors."""
        if self._owned is not None and _is_plain(self.crow_indices):
            patterns.find(self.crow_indices, self.col_indices)

    def _exchange_pattern(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        """Gives the index tensors the data of others. Graphs recorded before see new versions."""
        for name, data in (("crow_indices", crow_indices), ("col_indices", col_indices)):
            index = self._buffers[name]
            assert index is not None
            if index.is_inference():  # counts no versions
                self._buffers[name] = data
                continue
            torch.autograd.graph.increment_version([index])
            index.data = data.detach()
        self._own()

    def _set_dense_shape(self) -> None:
        shape = torch.tensor(self.weight_shape, device=self.crow_indices.device)
        self.register_buffer("dense_shape", shape)

    # --- what torch does with modules ---

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PatternOwner:
        """As nn.Module: `.to()` and the like. The pattern moves along, but for `to_empty`."""
        self._verify()
        before = self.crow_indices.detach(), self.col_indices.detach()
        super()._apply(fn, recurse)
        after = self.crow_indices, self.col_indices
        if all(map(_is_plain, after)):
            self._set_dense_shape()
            if not all(map(_is_plain, before)) or not all(map(_equal, before, after)):
                self._vacate()
            elif not self._pattern_pending:
                self._own()
        return self

    def __getstate__(self) -> dict[str, Any]:
        self._verify()
        state = self.__dict__.copy()
        state.pop("_owned", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self._pattern_pending:
            self._own()


def adopt_patterns(model: nn.Module) -> None:
    """Declares for every sparse layer that its values belong to what its index tensors hold now.

    For whoever has written to both in place, as a broadcast of all tensors of a model does;
    load_state_dict and the layers' own methods need no such word. Raises ValueError, naming the
    layer, where the tensors hold no pattern of the layer's shape.
    """
    for name, module in model.named_modules():
        if isinstance(module, PatternOwner):
            module.know_name(name)
            module.adopt_pattern()


def _is_plain(index: Tensor) -> bool:
    return type(index) is Tensor and index.device.type != "meta"


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one.device))
