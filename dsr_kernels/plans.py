"""The plan of each (pattern, geometry), built on first use and kept while the pattern lives.

A plan holds what the kernels derive from a pattern: offset tables, the transposed pattern, blocks.
It is found by the identity of the index tensors' storages, held by weak references: as long as an
entry refers to a storage, that storage's address cannot be given to another one, so a reused
address can never find a stale plan; a storage that died is purged, and an index tensor written in
place carries a new version and so misses.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ._native import _C

DTYPE_CODES = {torch.float32: "float32", torch.float64: "float64"}
MAX_PLANS = 1024


class Geometry(NamedTuple):
    """Everything but the pattern that shapes a plan; the batch size does not."""

    input_size: tuple[int, int, int]  # (C, H, W)
    output_size: tuple[int, int, int]  # (O, P, Q)
    weight_shape: tuple[int, int, int, int]  # (O, C // groups, KH, KW)
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]
    groups: int
    dtype: torch.dtype
    lanes: str = "plane"  # what fills the lanes of a vector: "plane", "row" or "batch"
    transposed: bool = False  # a plan for grad-input


class Plan(Protocol):
    """A native plan of the CPU, or what another backend derives from a pattern."""

    @property
    def bytes(self) -> int: ...


def _build(crow: Tensor, col: Tensor, g: Geometry) -> _C.ConvPlan:
    channels, *input_size = g.input_size
    rows, *output_size = g.output_size
    top, _, left, _ = g.padding  # the output size says what lies below and to the right
    return _C.ConvPlan(
        rows,
        channels,
        *input_size,
        g.weight_shape[2:],
        g.stride,
        (top, left),
        output_size,
        g.dilation,
        g.groups,
        crow.data_ptr(),
        col.data_ptr(),
        col.numel(),
        DTYPE_CODES[g.dtype],
        g.lanes,
        g.transposed,
    )


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
        build: Callable[[Tensor, Tensor, Any], Plan] = _build,
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


def geometry(
    read: Tensor,
    written: Tensor,
    input_size,
    output_size,
    weight_shape,
    stride,
    padding,
    dilation,
    groups,
    dtype,
    transposed=False,
) -> Geometry:
    """The geometry of a call, with the lanes that suit its batch and memory formats.

    A pointwise convolution sees an image as one long row: its height and width are whatever cuts
    well into vectors. `lanes_reason` says the same in words.
    """
    shape = weight_shape, stride, padding, dilation, groups
    if _pointwise(weight_shape, stride, padding):
        height, width = input_size[1:]
        if height > 1 and all(t.stride(2) == width * t.stride(3) for t in (read, written)):
            height, width = _long_rows(height * width)
        sizes = (input_size[0], height, width), (output_size[0], height, width)
        return Geometry(*sizes, *shape, dtype, "plane", transposed)
    lanes = _C.choose_lanes(*_of_lanes(read, written, input_size, output_size, *shape[:4], dtype))
    return Geometry(input_size, output_size, *shape, dtype, lanes, transposed)


def lanes_reason(
    read, written, input_size, output_size, weight_shape, stride, padding, dilation, _, dtype, *__
) -> str:
    """Why `geometry`, called with the same arguments, chooses its lanes."""
    shape = weight_shape, stride, padding, dilation
    if _pointwise(*shape[:3]):
        return "pointwise: an image is one long row"
    return _C.lanes_reason(*_of_lanes(read, written, input_size, output_size, *shape, dtype))


def _pointwise(weight_shape, stride, padding) -> bool:
    return weight_shape[2:] == (1, 1) and stride == (1, 1) and not any(padding)


def _of_lanes(
    read, written, input_size, output_size, weight_shape, stride, padding, dilation, dtype
) -> tuple:
    """The arguments of _C.choose_lanes and _C.lanes_reason."""
    rows, sides = read.stride(3) == written.stride(3) == 1, padding[::2]
    widths, kernel = (input_size[2], output_size[2]), weight_shape[2:]
    return read.shape[0], rows, *widths, kernel, stride, sides, dilation, DTYPE_CODES[dtype]


@functools.lru_cache(maxsize=256)
def _long_rows(pixels: int) -> tuple[int, int]:
    """(height, width) of the same pixels in rows of some ten vectors, or in a single row."""
    vector, best = 16, 14
    if pixels % vector:
        return 1, pixels
    vectors = pixels // vector
    divisors = [d for d in range(1, vectors + 1) if vectors % d == 0]
    width = vector * min(divisors, key=lambda d: abs(d - best))
    return pixels // width, width


cache = PlanCache()
