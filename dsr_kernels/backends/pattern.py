"""One pattern: what a pair of index tensors held at one moment, and the plans made of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dsr_kernels.backends.address import is_shared, storage_address
from dsr_kernels.backends.tensors import Look

Place = tuple[int | torch.SymInt, ...]


class Plan(Protocol):
    """A native plan of the CPU, or what another backend derives from a pattern."""

    @property
    def bytes(self) -> int: ...


class Owner(Protocol):
    """A sparse layer."""

    def label(self) -> str:
        """Its full name, as far as it is known, and its kind."""


class KeptPlan:
    """A plan, when it was last used, and what of the CPU's memory it takes."""

    __slots__ = ("bytes", "plan", "used")

    def __init__(self, plan: Plan, used: int, on_cpu: bool) -> None:
        self.plan, self.used = plan, used
        self.bytes = plan.bytes if on_cpu else 0


class KeptCall(NamedTuple):
    """What a backend prepared for calls that look the same, and the plans that it runs."""

    look: Look
    call: Any
    plans: list[KeptPlan]


class Pattern:
    """What a pair of index tensors held at one moment, and the plans made of it."""

    def __init__(self, crow_indices: Tensor, col_indices: Tensor, owner: Owner | None) -> None:
        self.plans: dict[tuple, KeptPlan] = {}
        self.calls: dict[Hashable, list[KeptCall]] = {}  # by op and size; the newest first
        self.owner = None if owner is None else weakref.ref(owner)
        # Called before the values are used, where the owner is to look at them first.
        self.guard: weakref.WeakMethod[Callable[[], None]] | None = None
        self.hold(crow_indices, col_indices)

    def hold(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        """Shares the memory of these tensors, which hold this pattern."""
        self.tensors = tensors_of(crow_indices, col_indices)
        # As long as these references live, no other storage is given the address of one that died.
        self.storages = tuple(
            StorageWeakRef(index.untyped_storage()) for index in (crow_indices, col_indices)
        )
        # Never handed out: what is written to must not be these.
        self._crow, crow_shared = _share(crow_indices, self.owner is not None)
        self._col, col_shared = _share(col_indices, self.owner is not None)
        self.shared = crow_shared and col_shared

    def can_share(self, crow_indices: Tensor, col_indices: Tensor) -> bool:
        """Whether `hold` could share the memory of these tensors."""
        strictly = self.owner is not None
        return all(is_shared(t) or is_alone(t, strictly) for t in (crow_indices, col_indices))

    @property
    def place(self) -> Place:
        """Where it lies: no other contents can, as long as this object lives."""
        return place_of(self._crow, self._col)

    @property
    def crow_indices(self) -> Tensor:
        """[O // block_size + 1] int32, for the caller to keep."""
        return torch._lazy_clone(self._crow)

    @property
    def col_indices(self) -> Tensor:
        """[blocks] int32, for the caller to keep."""
        return torch._lazy_clone(self._col)

    def expired(self) -> bool:
        """Whether the tensors that it was made of are gone."""
        return any(storage.expired() for storage in self.storages)

    def equals(self, crow_indices: Tensor, col_indices: Tensor) -> bool:
        """Whether these tensors hold this pattern, by reading them."""
        if capturing(crow_indices):
            return True  # nothing can be read, and a graph would not see later writes either
        pairs = (self._crow, crow_indices), (self._col, col_indices)
        # torch.equal finds int64 equal to int32; the kernels would read every other half of it.
        return all(
            held.device == now.device and held.dtype == now.dtype and torch.equal(held, now)
            for held, now in pairs
        )

    def same_as(self, other: Pattern) -> bool:
        """Whether the other object is, or says, the same."""
        return self is other or self.equals(other._crow, other._col)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self  # it never changes

    def __reduce__(self) -> tuple:
        return type(None), ()  # it belongs to its process; a layer finds another one


def _share(index: Tensor, strictly: bool) -> tuple[Tensor, bool]:
    """(a tensor that keeps what `index` holds, whether its memory is shared copy-on-write)."""
    if is_shared(index) or is_alone(index, strictly):
        try:
            return torch._lazy_clone(index), True
        except RuntimeError:  # not memory of torch's own
            pass
    return index.clone(), False


def is_alone(index: Tensor, strictly: bool = True) -> bool:
    """Whether nothing else refers to the tensor's memory, as views of it do, NumPy's too.

    strictly: nor to the tensor, as DLPack's capsules and collectives under way do. In the middle of
    an op torch itself does.
    """
    storage = index.untyped_storage()
    if torch._C._storage_Use_Count(storage._cdata) > 2:  # the tensor, and `storage`
        return False
    return not strictly or index._use_count() <= 1  # type: ignore[attr-defined]


def capturing(index: Tensor) -> bool:
    """Whether a CUDA graph is being recorded where the tensor lives."""
    return index.is_cuda and torch.cuda.is_current_stream_capturing()


def is_index(tensor: Tensor) -> bool:
    """Whether its place and number of elements tell how it is to be read."""
    return tensor.dtype is torch.int32 and tensor.dim() == 1 and tensor.is_contiguous()


def check_int32(name: str, index: object) -> None:
    """Raises ValueError, with the name, for an index tensor of another dtype."""
    if isinstance(index, Tensor) and index.dtype != torch.int32:
        raise ValueError(f"{name}: expected int32, got {index.dtype}")


def place_of(crow_indices: Tensor, col_indices: Tensor) -> Place:
    return (
        storage_address(crow_indices),
        storage_address(col_indices),
        crow_indices.storage_offset(),
        col_indices.storage_offset(),
        crow_indices.numel(),
        col_indices.numel(),
    )


def tensors_of(crow_indices: Tensor, col_indices: Tensor) -> tuple:
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
