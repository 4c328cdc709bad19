"""Patterns, and the plans that are made of them: built on first use, kept while a pattern lives.

A plan holds what the kernels derive from a pattern: offset tables, the transposed pattern, blocks.
It is worthless once the index tensors it was made of hold something else. Their versions do not
tell: writes through `.data`, NumPy and DLPack views and torch.distributed count none.

So the contents are frozen. A Pattern shares the memory of the index tensors copy-on-write, by
torch's own mechanism: whoever asks torch for memory to write to is given a copy, the Pattern keeps
what was there, and the tensor stops being shared, which is seen at the next call. Nothing is read
or copied as long as nobody writes.

Some memory cannot be shared in this way: that of other processes, of NumPy arrays, and memory to
which something may still hold an address. There the Pattern has a copy, and every call compares.

A pattern may have an owner, a sparse layer. Its values belong to its pattern, so the kernels refuse
index tensors of it that something else has written to.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dsr_kernels.backends.address import address_to_read, is_shared, storage_address

MAX_PLANS = 64  # of one pattern: one for each direction and input size
MAX_PATTERNS = 256  # without an owner


class Plan(Protocol):
    """A native plan of the CPU, or what another backend derives from a pattern."""

    @property
    def bytes(self) -> int: ...


class Owner(Protocol):
    """A sparse layer."""

    def label(self) -> str:
        """Its full name, as far as it is known, and its kind."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)
Key = TypeVar("Key", bound=Hashable)
Place = tuple[int | torch.SymInt, ...]


class Pattern:
    """What a pair of index tensors held at one moment, and the plans made of it."""

    def __init__(self, crow_indices: Tensor, col_indices: Tensor, owner: Owner | None) -> None:
        self.plans: OrderedDict[tuple, Plan] = OrderedDict()
        self.owner = None if owner is None else weakref.ref(owner)
        self.hold(crow_indices, col_indices)

    def hold(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        """Shares the memory of these tensors, which hold this pattern."""
        self.tensors = _tensors(crow_indices, col_indices)
        # As long as these references live, no other storage is given the address of one that died.
        self.storages = tuple(
            StorageWeakRef(index.untyped_storage()) for index in (crow_indices, col_indices)
        )
        # Never handed out: what is written to must not be these.
        self._crow, crow_shared = _share(crow_indices)
        self._col, col_shared = _share(col_indices)
        self.shared = crow_shared and col_shared

    @property
    def place(self) -> Place:
        """Where it lies: no other contents can, as long as this object lives."""
        return _place(self._crow, self._col)

    @property
    def crow_indices(self) -> Tensor:
        """[O + 1] int32, for the caller to keep."""
        return torch._lazy_clone(self._crow)

    @property
    def col_indices(self) -> Tensor:
        """[nnz] int32, for the caller to keep."""
        return torch._lazy_clone(self._col)

    def equals(self, crow_indices: Tensor, col_indices: Tensor) -> bool:
        """Whether these tensors hold this pattern, by reading them."""
        if crow_indices.is_cuda and torch.cuda.is_current_stream_capturing():
            return True  # nothing can be read, and a graph would not see later writes either
        pairs = (self._crow, crow_indices), (self._col, col_indices)
        return all(held.device == now.device and torch.equal(held, now) for held, now in pairs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self  # it never changes

    def __reduce__(self) -> tuple:
        raise TypeError("a Pattern belongs to its process; keep its index tensors instead")


def _share(index: Tensor) -> tuple[Tensor, bool]:
    """(a tensor that keeps what `index` holds, whether its memory is shared copy-on-write)."""
    if is_shared(index) or _is_alone(index):
        try:
            return torch._lazy_clone(index), True
        except RuntimeError:  # not memory of torch's own
            pass
    return index.clone(), False


def _is_alone(index: Tensor) -> bool:
    """Whether nothing else refers to the tensor's memory, as views of it do, NumPy's too."""
    storage = index.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) <= 2  # the tensor, and `storage`


def _place(crow_indices: Tensor, col_indices: Tensor) -> Place:
    return (
        storage_address(crow_indices),
        storage_address(col_indices),
        crow_indices.storage_offset(),
        col_indices.storage_offset(),
        crow_indices.numel(),
        col_indices.numel(),
    )


class Patterns:
    """All patterns that are in use."""

    def __init__(self, max_plans: int = MAX_PLANS, max_patterns: int = MAX_PATTERNS) -> None:
        self._max_plans, self._max_patterns = max_plans, max_patterns
        self._frozen: dict[Place, weakref.ref[Pattern]] = {}
        self._owned: dict[tuple, weakref.ref[Pattern]] = {}
        self._loose: OrderedDict[tuple, Pattern] = OrderedDict()
        self._lock = threading.RLock()
        self.changes = 0  # how often an owner has taken on a pattern, perhaps the one it had

    # --- plans ---

    def plan(
        self,
        crow_indices: Tensor,
        col_indices: Tensor,
        key: Key,
        build: Callable[[Tensor, Tensor, Key], AnyPlan],
    ) -> AnyPlan:
        """build(crow_indices, col_indices, key), or what it returned before.

        A plan must not hold the index tensors. Raises RuntimeError for those of a sparse layer that
        something else has written to.
        """
        pattern = self.find(crow_indices, col_indices)
        plans, place = pattern.plans, (build, key)
        with self._lock:
            plan = plans.get(place)
            if plan is not None:
                plans.move_to_end(place)
                return plan  # type: ignore[return-value]  # `build`, a part of place, made it
        built = build(crow_indices, col_indices, key)
        with self._lock:
            plans[place] = built
            while len(plans) > self._max_plans:
                plans.popitem(last=False)
        return built

    def plans(self) -> list[Plan]:
        """Every plan there is."""
        with self._lock:
            self._purge()
            patterns = {id(p): p for p in [*self._loose.values(), *self._living()]}
            return [plan for pattern in patterns.values() for plan in pattern.plans.values()]

    def clear(self) -> None:
        """Drops every plan."""
        with self._lock:
            for pattern in [*self._loose.values(), *self._living()]:
                pattern.plans.clear()
            self._loose.clear()

    def _living(self) -> list[Pattern]:
        found = [reference() for reference in self._owned.values()]
        return [pattern for pattern in found if pattern is not None]

    # --- patterns ---

    def own(
        self, crow_indices: Tensor, col_indices: Tensor, owner: Owner, known: Pattern | None
    ) -> Pattern:
        """The pattern of the owner's tensors: `known`, what it had before, if that is the same.

        Only the owner may change these tensors, as long as it keeps the Pattern.
        """
        with self._lock:
            self.changes += 1
            if known is not None and known.equals(crow_indices, col_indices):
                pattern = known
                self._frozen.pop(pattern.place, None)
                self._owned.pop(pattern.tensors, None)
                pattern.hold(crow_indices, col_indices)
            else:
                pattern = Pattern(crow_indices, col_indices, owner)
            self._owned[pattern.tensors] = self._weak(pattern, self._owned, pattern.tensors)
            self._freeze(pattern)
        return pattern

    def find(self, crow_indices: Tensor, col_indices: Tensor) -> Pattern:
        """The pattern that the tensors hold. Raises RuntimeError as `plan` does."""
        reference = self._frozen.get(_place(crow_indices, col_indices))
        if reference is not None and is_shared(crow_indices) and is_shared(col_indices):
            pattern = reference()
            if pattern is not None:
                return pattern
        with self._lock:
            return self._look(crow_indices, col_indices)

    def _look(self, crow_indices: Tensor, col_indices: Tensor) -> Pattern:
        """`find` for tensors that are not shared, or no longer: by what they hold."""
        for index in (crow_indices, col_indices):
            address_to_read(index)  # refuses those without memory
        tensors = _tensors(crow_indices, col_indices)
        reference = self._owned.get(tensors)
        owned = None if reference is None else reference()
        if owned is not None and not any(storage.expired() for storage in owned.storages):
            if not owned.equals(crow_indices, col_indices):
                raise RuntimeError(written_by_another(owned))
            return self._hold(owned, crow_indices, col_indices)
        loose = self._loose.get(tensors)
        if loose is not None and loose.equals(crow_indices, col_indices):
            self._loose.move_to_end(tensors)
            return self._hold(loose, crow_indices, col_indices)
        self._purge()
        pattern = self._loose[tensors] = Pattern(crow_indices, col_indices, None)
        while len(self._loose) > self._max_patterns:
            self._loose.popitem(last=False)
        self._freeze(pattern)
        return pattern

    def _hold(self, pattern: Pattern, crow_indices: Tensor, col_indices: Tensor) -> Pattern:
        """Shares the tensors' memory again, where it can be."""
        if not pattern.shared and not (_is_alone(crow_indices) and _is_alone(col_indices)):
            return pattern
        self._frozen.pop(pattern.place, None)
        pattern.hold(crow_indices, col_indices)
        self._freeze(pattern)
        return pattern

    def _freeze(self, pattern: Pattern) -> None:
        if pattern.shared:
            place = pattern.place
            self._frozen[place] = self._weak(pattern, self._frozen, place)

    @staticmethod
    def _weak(pattern: Pattern, held_in: dict, key: tuple) -> weakref.ref[Pattern]:
        """A reference that leaves the dict when the pattern dies."""

        def gone(reference: weakref.ref[Pattern]) -> None:
            if held_in.get(key) is reference:
                held_in.pop(key, None)

        return weakref.ref(pattern, gone)

    def _purge(self) -> None:
        dead = [
            tensors
            for tensors, pattern in self._loose.items()
            if any(storage.expired() for storage in pattern.storages)
        ]
        for tensors in dead:
            del self._loose[tensors]


def _tensors(crow_indices: Tensor, col_indices: Tensor) -> tuple:
    """What tells a pair of tensors from another that lives at the same time."""
    return (
        crow_indices.untyped_storage()._cdata,
        col_indices.untyped_storage()._cdata,
        crow_indices.storage_offset(),
        col_indices.storage_offset(),
    )


def written_by_another(pattern: Pattern) -> str:
    """What to say where the index tensors of a sparse layer hold what the layer does not know."""
    owner = None if pattern.owner is None else pattern.owner()
    return (
        f"{'a sparse layer' if owner is None else owner.label()}: something else than the layer "
        "has written to its crow_indices or col_indices, so its values no longer belong to the "
        "positions that these name. An average of a model that is rewired has to follow it: "
        "Rewirer.follow. To copy weights, use load_state_dict. Where the values were written "
        "along, as by a broadcast, say so: dsr_kernels.nn.adopt_patterns(model)"
    )


patterns = Patterns()
