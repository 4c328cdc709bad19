"""The native plan of each (pattern, geometry), built on first use and kept while the pattern lives.

A plan holds what the kernels derive from a pattern: offset tables, the transposed pattern, blocks.
It is found by the identity of the index tensors' storages, held by weak references: as long as an
entry refers to a storage, that storage's address cannot be given to another one, so a reused
address can never find a stale plan; a storage that died is purged, and an index tensor written in
place carries a new version and so misses.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

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


class _Entry(NamedTuple):
    plan: _C.ConvPlan
    crow: StorageWeakRef
    col: StorageWeakRef


class PlanCache:
    """A bounded map (identity of the pattern, geometry) -> plan; the least recently used goes."""

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

    def get(self, crow: Tensor, col: Tensor, geometry: Geometry) -> _C.ConvPlan:
        if crow.is_inference() or col.is_inference():
            return _build(crow, col, geometry)  # inference tensors count no versions
        key = (*_identity(crow), *_identity(col), geometry)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry.plan
            self._purge()
        plan = _build(crow, col, geometry)
        entry = _Entry(
            plan, StorageWeakRef(crow.untyped_storage()), StorageWeakRef(col.untyped_storage())
        )
        with self._lock:
            self._entries[key] = entry
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
    )


cache = PlanCache()


# --- launches: ops.py has checked every argument and allocated `out` ------------------------------
# x [N, C, H, W] and y [N, O, P, Q] may have any strides. `shape` is weight_shape, stride, padding
# (top, bottom, left, right), dilation, groups. Activations of lower precision are converted here.


def forward(
    out: Tensor, x: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, *shape
) -> Tensor:
    """out [N, O, P, Q] = conv2d(x, W) + bias."""
    dtype = values.dtype
    plan = cache.get(crow, col, Geometry(x.shape[1:], out.shape[1:], *shape, dtype))
    x, values, y = _in_dtype(x, dtype), values.contiguous(), _like(out, dtype)
    bias = None if bias is None else bias.contiguous()
    n, threads = x.shape[0], torch.get_num_threads()
    scratch = _workspace(plan, "forward", n, threads)
    plan.forward(
        n,
        x.data_ptr(),
        x.stride(),
        values.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        y.stride(),
        threads,
        scratch.data_ptr(),
    )
    return out if y is out else out.copy_(y)


def grad_input(
    out: Tensor, grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, *shape
) -> Tensor:
    """out [N, C, H, W] = the gradient of the input, from grad [N, O, P, Q]."""
    dtype = values.dtype
    plan = cache.get(crow, col, Geometry(out.shape[1:], grad.shape[1:], *shape, dtype))
    grad, values, gx = _in_dtype(grad, dtype), values.contiguous(), _like(out, dtype)
    n, threads = grad.shape[0], torch.get_num_threads()
    scratch = _workspace(plan, "grad_input", n, threads)
    plan.grad_input(
        n,
        grad.data_ptr(),
        grad.stride(),
        values.data_ptr(),
        gx.data_ptr(),
        gx.stride(),
        threads,
        scratch.data_ptr(),
    )
    return out if gx is out else out.copy_(gx)


def grad_weight(out: Tensor, x: Tensor, grad: Tensor, crow: Tensor, col: Tensor, *shape) -> Tensor:
    """out [nnz] = the gradient of the values, from x [N, C, H, W] and grad [N, O, P, Q]."""
    dtype = out.dtype
    plan = cache.get(crow, col, Geometry(x.shape[1:], grad.shape[1:], *shape, dtype))
    x, grad = _in_dtype(x, dtype), _in_dtype(grad, dtype)
    n, threads = x.shape[0], torch.get_num_threads()
    scratch = _workspace(plan, "grad_weight", n, threads)
    plan.grad_weight(
        n,
        x.data_ptr(),
        x.stride(),
        grad.data_ptr(),
        grad.stride(),
        out.data_ptr(),
        threads,
        scratch.data_ptr(),
    )
    return out


def grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad summed over batch and image, the same bits for any number of threads."""
    grad = _in_dtype(grad, out.dtype)
    scratch = torch.empty(_C.channel_sums_workspace(*grad.shape[:2]), dtype=torch.uint8)
    _C.channel_sums(
        DTYPE_CODES[out.dtype],
        grad.shape,
        grad.data_ptr(),
        grad.stride(),
        out.data_ptr(),
        torch.get_num_threads(),
        scratch.data_ptr(),
    )
    return out


def _workspace(plan: _C.ConvPlan, op: str, n: int, threads: int) -> Tensor:
    """Scratch memory for one call, from torch, so that torch's memory counters are honest."""
    return torch.empty(plan.workspace_bytes(op, n, threads), dtype=torch.uint8)


def _in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _like(out: Tensor, dtype: torch.dtype) -> Tensor:
    return out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)
