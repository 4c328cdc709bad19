"""Memory of large results of a training step on the CPU, kept for the next step.

glibc's heap serves large blocks between small ones that live on. What one step frees, the next
cannot always use again: the process grows, by how much is chance, and fresh pages cost a fault
each. So the calls of a fused training step (cpu_calls) take memory that an earlier result of the
same size has left. The memory is torch's: a buffer is a storage, which is free again once nothing
but this module refers to it. It goes back to torch when the layer that used it last does, and when
idle buffers are many beside those in use.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, UntypedStorage

from dsr_kernels.backends.locks import Rank, make_lock

SMALLEST = 1 << 20  # bytes; the heap does well with smaller ones
MOST_IDLE = 64 << 20  # bytes that may be idle beside twice what is in use, where more is asked for


class _Buffer:
    __slots__ = ("owner", "size", "storage", "used")

    def __init__(self, storage: UntypedStorage, owner: weakref.ref[object], used: int) -> None:
        self.storage, self.owner, self.used = storage, owner, used
        self.size = storage.nbytes()

    def is_idle(self) -> bool:
        """Whether nobody else refers to its memory in this process.

        torch 2.13 has a live storage hold its Python object, so the first count sees tensors, too.
        Nothing promises that; the second one is of the memory itself.
        """
        if sys.getrefcount(self.storage) > 2:  # this object's, and the call's
            return False
        return torch._C._storage_Use_Count(self.storage._cdata) == 1

    def is_lost(self) -> bool:
        """Whether its memory has become another's, or another, or nobody's."""
        storage = self.storage
        same = storage.nbytes() == self.size and storage.device.type == "cpu"
        return not same or storage.is_shared() or self.owner() is None


class Buffers:
    def __init__(self) -> None:
        self._known: list[_Buffer] = []
        self._requests = 0
        self._last: Callable[[], object | None] = lambda: None  # whoever asked last
        self._lock = make_lock(Rank.BUFFERS)  # an owner may die, and be told, at any moment

    def empty(
        self, owner: object | None, size: Sequence[int], strides: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """torch.empty_strided, in memory that is kept while `owner` or a later one lives.

        `size` and `strides` are dense: the tensor fills its memory. None is whoever asked last.
        """
        count = dtype.itemsize * math.prod(size)
        with self._lock:
            owner = self._last() if owner is None else owner
            if count < SMALLEST or owner is None:
                return torch.empty_strided(size, strides, dtype=dtype, device="cpu")
            self._requests += 1
            buffer = self._take(count)
            if buffer is None:
                self._trim()
                made = torch.empty_strided(size, strides, dtype=dtype, device="cpu")
                buffer = _Buffer(made.untyped_storage(), weakref.ref(owner, self._forget), 0)
                self._known.append(buffer)
            else:
                made = torch.empty(0, dtype=dtype, device="cpu")
                made.set_(buffer.storage, 0, size, strides)
            if buffer.owner() is not owner:
                buffer.owner = weakref.ref(owner, self._forget)
            self._last, buffer.used = buffer.owner, self._requests
        return made

    def _take(self, count: int) -> _Buffer | None:
        """An idle buffer of this size; those that are idle and lost are given up."""
        for buffer in tuple(reversed(self._known)):
            if buffer.size == count and buffer.is_idle():
                if not buffer.is_lost():
                    return buffer
                self._drop(buffer)
        return None

    def _trim(self) -> None:
        """Gives idle buffers up, the longest unused first, where they are many."""
        idle = [buffer for buffer in self._known if buffer.is_idle()]
        for buffer in [buffer for buffer in idle if buffer.is_lost()]:
            idle.remove(buffer)
            self._drop(buffer)
        spare = sum(buffer.size for buffer in idle)
        most = MOST_IDLE + 2 * (self.held() - spare)
        for buffer in sorted(idle, key=lambda each: each.used):
            if spare <= most:
                break
            spare -= buffer.size
            self._drop(buffer)

    def _drop(self, gone: _Buffer) -> None:
        self._known = [buffer for buffer in self._known if buffer is not gone]

    def _forget(self, _: weakref.ref[object]) -> None:
        with self._lock:
            self._known = [buffer for buffer in self._known if buffer.owner() is not None]

    def held(self) -> int:
        """Bytes of all buffers, in use or not."""
        return sum(buffer.size for buffer in tuple(self._known))


buffers = Buffers()
