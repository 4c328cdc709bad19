"""PatternOwner: a module whose index tensors nobody else may write to.

`crow_indices` and `col_indices` are buffers, so that they are saved, moved and broadcast like any.
The module's values belong to the pattern that it has set itself, loaded or adopted. Where something
else has changed the buffers, values and pattern no longer belong together: that is refused at the
next call, by the kernels, and when the module is saved, copied, moved or rewired.

The tensors stay the same objects when the pattern changes, as a Parameter does. So whoever holds
the module's tensors, such as a trace, has either all of the old pattern or all of the new one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.held import exchange
from dsr_kernels.backends.pattern import Pattern, check_int32
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.nn import copies, sharing
from dsr_kernels.topology import check_pattern


class PatternOwner(nn.Module):
    """Holds crow_indices [O // block_size + 1], col_indices [blocks] and dense_shape (int64)."""

    weight_shape: tuple[int, ...]
    block_size: int = 1  # consecutive output channels that share their positions
    crow_indices: Tensor
    col_indices: Tensor
    # The dense weight's shape travels with the tensors: a checkpoint of another one is seen.
    dense_shape: Tensor
    times_given: int = 0  # the weight, by a load or replace_topology; versions count more than that
    _owned: Pattern | None = None
    _pattern_pending: bool = False  # nothing has been drawn or loaded since it was on meta
    _name: str = ""  # in its model, as far as it is known
    _lineage: copies.Lineage | None = None  # once it has been copied
    _left_behind: Tensor | None = None  # of a frozen copy: its values when the original was rewired
    _left_to: weakref.ref[PatternOwner] | None = None  # whose pattern its values belong to
    _expects_broadcast: bool = False

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
        self._check_dtypes()
        found = patterns.find(crow, col)
        if self._owned is not None and found.same_as(self._owned):
            return self._owned
        return self.adopt_pattern()

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
            pattern = self.crow_indices, self.col_indices
            check_pattern(self.weight_shape, *pattern, self.block_size)
        except ValueError as error:
            raise ValueError(f"{self.label()}: {error}") from None
        # Graphs recorded before see new versions.
        indices = [t for t in (self.crow_indices, self.col_indices) if not t.is_inference()]
        torch.autograd.graph.increment_version(indices)
        self._own()
        self._pattern_pending = False
        self._leave_behind(None)
        assert self._owned is not None
        return self._owned

    def _own(self) -> None:
        """Takes what the index tensors hold for this module's pattern."""
        crow, col = self.crow_indices, self.col_indices
        plain = _is_plain(crow) and _is_plain(col)
        if plain and self.dense_shape.is_meta:  # built there, and given tensors since
            self._set_dense_shape()
        self._owned = patterns.own(crow, col, self, self._owned) if plain else None

    def _unshare(self) -> None:
        """Gives the layer index tensors of its own where another weight has the same ones."""
        for name in sharing.INDICES:
            index = self._buffers[name]
            if index is None or not _is_plain(index):
                continue
            if sharing.has_index_of_another(self, name):
                self._buffers[name] = index.clone()

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
            self._check_dtypes()
            patterns.find(self.crow_indices, self.col_indices)
        self._verify_values()

    def _check_dtypes(self) -> None:
        for name in sharing.INDICES:
            check_int32(f"{self.label()}: {name}", self._buffers[name])

    def _verify_values(self) -> None:
        """Raises RuntimeError for values of another pattern than this layer's: those of a copy that
        goes on as an average of a model rewired since, and shared ones of a layer changed since.
        """
        values = self._parameters.get("weight_values")
        other = None if self._left_to is None else self._left_to()
        if other is not None and other._parameters.get("weight_values") is values:
            if not self._has_indices(other.crow_indices, other.col_indices):
                raise RuntimeError(sharing.left_to(self, other))
            self._leave_to(None)
        if self._left_behind is None or values is None:
            return
        if values.requires_grad:  # it trains by itself
            self._leave_behind(None)
        elif copies.written_to(self._left_behind, values):
            raise RuntimeError(copies.left_behind(self.label()))

    def _leave_behind(self, values: Tensor | None) -> None:
        """Keeps the values that a frozen copy had when its original was rewired; None: forgets."""
        self._left_behind = None if values is None else copies.keep(values)
        self._leave_to(None)

    def _leave_to(self, other: PatternOwner | None) -> None:
        """The shared values belong to the other layer's pattern from now on; None: to its own."""
        self._left_to = None if other is None else weakref.ref(other)
        if self._owned is not None:  # the kernels are to ask, whoever calls them
            doubtful = other is not None or self._left_behind is not None
            self._owned.guard = weakref.WeakMethod(self._verify_values) if doubtful else None

    def _alike(self) -> list[PatternOwner]:
        """The frozen copies of this layer that have its pattern: snapshots and averages."""
        found = []
        for copied in () if self._lineage is None else list(self._lineage.members):
            assert isinstance(copied, PatternOwner)
            values = copied._parameters.get("weight_values")
            frozen = values is not None and not values.requires_grad and not values.is_meta
            pattern = copied.crow_indices, copied.col_indices
            if copied is not self and frozen and self._has_indices(*pattern):
                found.append(copied)
        return found

    def _tell_copies(self, before: list[PatternOwner]) -> None:
        """After a rewire: the copies `before`, alike until then, may not be written to any more."""
        alike = self._alike()
        for copied in before:
            values = copied._parameters["weight_values"]
            if copied not in alike and copied._left_behind is None and values is not None:
                copied._leave_behind(values)
                copied._name = copied._name or self._name
        for copied in alike:  # a rewire that failed has been taken back
            values, kept = copied._parameters["weight_values"], copied._left_behind
            if kept is not None and values is not None and not copies.written_to(kept, values):
                copied._leave_behind(None)

    def _has_indices(self, crow_indices: Tensor, col_indices: Tensor) -> bool:
        pairs = (self.crow_indices, crow_indices), (self.col_indices, col_indices)
        return all(all(map(_is_plain, pair)) and _equal(*pair) for pair in pairs)

    def _join(self, other: object) -> None:
        """Is a copy of the other layer from now on, for it was loaded from that one's tensors."""
        if isinstance(other, PatternOwner) and other is not self:
            other._lineage = self._lineage = other._lineage or copies.Lineage()
            self._lineage.members.update((self, other))

    # --- broadcasts ---

    def expect_broadcast(self) -> None:
        """Before the next forward pass all tensors may be written to, values and indices."""
        self._expects_broadcast = True

    def _take_broadcast(self) -> None:
        self._expects_broadcast = False
        pattern = self.crow_indices, self.col_indices
        known = self._owned is not None and all(map(_is_plain, pattern))
        if known and not self._owned.equals(*pattern):  # type: ignore[union-attr]
            self.adopt_pattern()

    def _exchange_pattern(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        """Gives the index tensors the data of others. Graphs recorded before see new versions."""
        self._unshare()
        for name, data in (("crow_indices", crow_indices), ("col_indices", col_indices)):
            index = self._buffers[name]
            assert index is not None
            if index.is_inference():  # counts no versions
                with torch.inference_mode():
                    index.data = data if data.is_inference() else data.clone()
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
        with exchange:
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
                    if self._left_behind is not None:
                        self._leave_behind(self._parameters["weight_values"])
        return self

    def __getstate__(self) -> dict[str, Any]:
        self._verify()
        if self._lineage is None:
            self._lineage = copies.Lineage()
        self._lineage.members.add(self)
        state = self.__dict__.copy()
        state.pop("_owned", None)
        state.pop("_left_to", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._lineage is not None:
            self._lineage.members.add(self)
        if not self._pattern_pending:
            self._own()
        if self._left_behind is not None:
            self._leave_behind(self._left_behind)
        sharing.join(self)


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
