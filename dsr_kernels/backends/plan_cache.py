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
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

MAX_PLANS = 1024


class Plan(Protocol):
    """A native plan of the CPU, or what another backend derives from a pattern."""

    @property
    def bytes(self) -> int: ...


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
        crow: Tensor,
        col: Tensor,
        key: Hashable,
        build: Callable[[Tensor, Tensor, Any], Plan],
    ) -> Any:
        """build(crow, col, key), or what it returned before; a plan must not hold crow or col."""
        if crow.is_inference() or col.is_inference():
            return build(crow, col, key)  # inference tensors count no versions
        place = (*_identity(crow), *_identity(col), build, key)
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None:
                self._entries.move_to_end(place)
                return entry.plan
            self._purge()
        plan = build(crow, col, key)
        entry = _Entry(
            plan, StorageWeakRef(crow.untyped_storage()), StorageWeakRef(col.untyped_storage())
        )
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
