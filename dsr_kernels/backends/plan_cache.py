"""The plan of each (pattern, geometry), built on first use and kept while the pattern lives.

A plan holds what the kernels derive from a pattern: offset tables, the transposed pattern, blocks.
It is found by the identity of the index tensors' storages, held by weak references: as long as an
entry refers to a storage, that storage's address cannot be given to another one, so a reused
address can never find a stale plan; a storage that died is purged, and an index tensor written in
place carries a new version and so misses.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

MAX_PLANS = 1024


class Plan(Protocol):
    """A native plan of the CPU, or what another backend derives from a pattern."""

    @property
    def bytes(self) -> int: ...


AnyPlan = TypeVar("AnyPlan", bound=Plan)
Key = TypeVar("Key", bound=Hashable)


class _Entry(NamedTuple):
    plan: Plan
    crow: StorageWeakRef
    col: StorageWeakRef


class PlanCache:
    """A bounded map (pattern's identity, builder, key) -> plan; the least recently used goes."""

    def __init__(self, capacity: int = MAX_PLANS) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[tuple, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Memory the cached plans hold."""
        return sum(entry.plan.bytes for entry in self._entries.values())

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def get(
        self,
        crow_indices: Tensor,
        col_indices: Tensor,
        key: Key,
        build: Callable[[Tensor, Tensor, Key], AnyPlan],
    ) -> AnyPlan:
        """build(crow_indices, col_indices, key), or what it returned before.

        A plan must not hold the index tensors.
        """
        if crow_indices.is_inference() or col_indices.is_inference():
            return build(crow_indices, col_indices, key)  # inference tensors count no versions
        place = (*_identity(crow_indices), *_identity(col_indices), build, key)
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None:
                self._entries.move_to_end(place)
                return entry.plan  # type: ignore[return-value]  # `build`, a part of place, made it
            self._purge()
        plan = build(crow_indices, col_indices, key)
        storages = crow_indices.untyped_storage(), col_indices.untyped_storage()
        entry = _Entry(plan, *map(StorageWeakRef, storages))
        with self._lock:
            self._entries[place] = entry
            while len(self._entries) > self.capacity:
                self._entries.popitem(last=False)
        return plan

    def _purge(self) -> None:
        dead = [k for k, e in self._entries.items() if e.crow.expired() or e.col.expired()]
        for key in dead:
            del self._entries[key]


def _identity(index: Tensor) -> tuple[int, int, int, int]:
    """What no other live tensor with other contents shares."""
    return index.untyped_storage()._cdata, index.data_ptr(), index._version, index.numel()


cache = PlanCache()
