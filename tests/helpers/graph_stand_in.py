"""A CUDA graph's stand-in on the CPU: a capture records the calls of torch's ops, a replay makes
them again on the same memory.

What it has of the real one: a capture computes nothing (what was written to is put back, what it
made holds garbage until a replay); a replay reads and writes the memory of the capture, wherever
the tensors are by now, and runs no Python; what waits for the device is refused, and the capture
is then lost; the memory of a graph lives as long as it does. Streams are names.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from dsr_kernels.cuda import replayer

# On a GPU these wait for what it computes. (So do `tolist` and `torch.tensor`, not seen here.)
WAITING = {
    *("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"),
    *("aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2"),
    *("aten::bincount", "aten::allclose"),
}


class Graph:
    """torch.cuda.CUDAGraph."""

    living: ClassVar[weakref.WeakSet[Graph]] = weakref.WeakSet()
    captures = 0
    replays = 0

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[tuple] | None = None
        Graph.living.add(self)

    def replay(self) -> None:
        assert self.calls is not None, "replayed before it was captured"
        assert Device.capturing is None, "replayed within a capture"
        Graph.replays += 1
        with torch.no_grad():
            for op, args, kwargs, results in self.calls:
                now = tree_flatten(op(*args, **kwargs))[0]
                for result, new in zip(results, now, strict=True):
                    if result is not None:
                        result.copy_(new)


class Recorder(TorchDispatchMode):
    """Notes every op, with the memory that its tensors have now."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.made: dict[int, torch.UntypedStorage] = {}
        self.is_lost = False

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        by_mask = op._schema.name == "aten::index" and any(t.dtype == torch.bool for t in given[1:])
        if op._schema.name in WAITING or by_mask:
            self.is_lost = True
            raise RuntimeError(
                f"operation not permitted when stream is capturing ({op._schema.name})\nand more"
            )
        for tensor in given:
            self._keep(tensor)
        places = {t.untyped_storage()._cdata for t in given}
        noted = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        out = op(*args, **kwargs)
        results = []
        for result in tree_flatten(out)[0]:
            is_new = isinstance(result, Tensor) and result.untyped_storage()._cdata not in places
            if is_new:
                storage = result.untyped_storage()
                self.made[storage._cdata] = storage
            results.append(result.detach() if is_new else None)
        self.calls.append((op, *noted, results))
        return out

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.made or torch._C._is_cow_tensor(tensor):
            return
        self.before.setdefault(storage._cdata, (storage, storage.clone()))

    def nothing_computed(self) -> None:
        for storage, held in self.before.values():
            storage.copy_(held)
        for storage in self.made.values():
            storage.fill_(255)  # nan, or -1


class Capture:
    """torch.cuda.graph."""

    def __init__(
        self,
        cuda_graph: Graph,
        pool: object = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        assert stream is not None and pool is None
        assert capture_error_mode == "thread_local"
        self.graph, self.stream = cuda_graph, stream

    def __enter__(self) -> None:
        others = [one for one in Graph.living if one is not self.graph and one.calls is not None]
        assert not others, "an older graph has memory beside the new one"
        assert not Device.memory(), "tensors of an older graph are held"
        Device.current = self.stream
        Device.capturing = self.stream
        self.random = torch.get_rng_state()
        self.recorder = Recorder()
        self.recorder.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.recorder.__exit__(kind, error, trace)
        Device.capturing = None
        torch.set_rng_state(self.random)
        self.recorder.nothing_computed()
        Device.made = [StorageWeakRef(storage) for storage in self.recorder.made.values()]
        if self.recorder.is_lost:  # as torch: its stream stays the current one
            raise RuntimeError("operation failed due to a previous error during capture")
        self.graph.calls = self.recorder.calls
        self.recorder = None
        Graph.captures += 1
        Device.current = Device.default


class Stream:
    """torch.cuda.Stream."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.waits: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        assert Device.capturing is None
        self.waits.append(other)


class Device:
    """What torch.cuda knows of the device."""

    default = current = Stream()
    capturing: Stream | None = None
    made: ClassVar[list[StorageWeakRef]] = []  # by the last capture

    @classmethod
    def memory(cls) -> int:
        """How many storages of the last capture are alive."""
        return sum(not storage.expired() for storage in cls.made)

    @classmethod
    def synchronize(cls, device: object = None) -> None:
        assert cls.capturing is None, "synchronizes within a capture"

    @classmethod
    def set_stream(cls, stream: Stream) -> None:
        cls.current = stream

    @classmethod
    @contextlib.contextmanager
    def on(cls, stream: Stream) -> Iterator[None]:
        former, cls.current = cls.current, stream
        try:
            yield
        finally:
            cls.current = former


def use(patch: pytest.MonkeyPatch) -> None:
    """From now on CPUs have graphs."""
    Graph.living.clear()
    Graph.captures = Graph.replays = 0
    Device.current, Device.capturing, Device.made = Device.default, None, []
    patch.setattr(replayer, "GPU", "cpu")
    patch.setattr(torch.cuda, "CUDAGraph", Graph)
    patch.setattr(torch.cuda, "graph", Capture)
    patch.setattr(torch.cuda, "Stream", Stream)
    patch.setattr(torch.cuda, "stream", Device.on)
    patch.setattr(torch.cuda, "set_stream", Device.set_stream)
    patch.setattr(torch.cuda, "current_stream", lambda device=None: Device.current)
    patch.setattr(torch.cuda, "synchronize", Device.synchronize)
