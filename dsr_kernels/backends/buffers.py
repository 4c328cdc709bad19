"""Memory of large results on the CPU, kept from step to step.

glibc's heap serves large blocks between small ones that live on. What one step frees, the next
cannot always use again: the process grows, by how much is chance, and fresh pages cost a fault
each. So a prepared call (cpu_calls) takes memory that an earlier result of the same size has left.
The memory is torch's: a buffer is a storage, which is free again once nothing but this module
refers to it. It goes back to torch when the layer that used it last does.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, UntypedStorage

SMALLEST = 1 << 20  # bytes; the heap does well with smaller ones
IDLE = 1024  # a buffer that so many requests have passed over is given up


class _Buffer:
    __slots__ = ("owner", "storage", "used")

    def __init__(self, storage: UntypedStorage) -> None:
        self.storage, self.used = storage, 0
        self.owner: weakref.ref[object] | None = None  # whoever used it last

    def is_free(self, size: int) -> bool:
        """Whether nobody refers to its memory, in this process or another."""
        if sys.getrefcount(self.storage) > 2:  # this object's, and the call's
            return False
        storage = self.storage
        alone = torch._C._storage_Use_Count(storage._cdata) == 1
        return alone and storage.nbytes() == size and not storage.is_shared()


class Buffers:
    """Storages by their size in bytes."""

    def __init__(self) -> None:
        self._known: dict[int, list[_Buffer]] = {}
        self._requests = 0
        self._last: Callable[[], object | None] = lambda: None  # whoever asked last
        self._lock = threading.RLock()  # an owner may die, and be told, in the middle of anything

    def empty(
        self, owner: object | None, size: Sequence[int], strides: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """torch.empty_strided, in memory that is kept while `owner` or a later one lives.

        `size` and `strides` are dense: the tensor fills its memory. None is whoever asked last.
        """
        count = dtype.itemsize * math.prod(size)
        if count < SMALLEST:
            return torch.empty_strided(size, strides, dtype=dtype)
        with self._lock:
            owner = self._last() if owner is None else owner
            if owner is None:
                return torch.empty_strided(size, strides, dtype=dtype)
            self._requests += 1
            buffers = self._known.setdefault(count, [])
            buffer = next((each for each in reversed(buffers) if each.is_free(count)), None)
            if buffer is None:
                made = torch.empty_strided(size, strides, dtype=dtype)
                buffer = _Buffer(made.untyped_storage())
                buffers.append(buffer)
            else:
                made = torch.empty(0, dtype=dtype).set_(buffer.storage, 0, size, strides)
            if buffer.owner is None or buffer.owner() is not owner:
                buffer.owner = weakref.ref(owner, self._forget)
            self._last, buffer.used = buffer.owner, self._requests
            if self._requests % IDLE == 0:
                self._sweep()
        return made

    def _forget(self, owner: weakref.ref[object]) -> None:
        self._keep(lambda buffer: buffer.owner is not owner)

    def _sweep(self) -> None:
        self._keep(lambda buffer: buffer.used > self._requests - IDLE)

    def _keep(self, wanted: Callable[[_Buffer], bool]) -> None:
        with self._lock:
            kept = ((size, [b for b in each if wanted(b)]) for size, each in self._known.items())
            self._known = {size: each for size, each in kept if each}

    def held(self) -> int:
        """Bytes of all buffers, in use or not."""
        with self._lock:
            return sum(size * len(each) for size, each in self._known.items())


buffers = Buffers()
