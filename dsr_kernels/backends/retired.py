"""Values of patterns that are gone: tensors that still hold what a layer's parameter held before.

`{k: v.detach() for k, v in model.named_parameters()}` keeps a layer's values over a rewire. With
the new pattern they would be other weights; where their number stays, nothing would show.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

# By where they begin. A weak reference keeps a storage's address from being given to another one.
_retired: dict[tuple[int, int], StorageWeakRef] = {}
_SPARED = "_dsr_spared"
# What else may know that values are somebody's.
_claims: list[Callable[[tuple[int, int]], bool]] = []


def claim(knows: Callable[[tuple[int, int]], bool]) -> None:
    """`knows` tells whether the present values of a layer begin at a place: two may share them."""
    _claims.append(knows)


def retire(values: Tensor) -> None:
    """From now on no op takes values that begin here, unless a layer has its own there."""
    for place in [place for place, storage in _retired.items() if storage.expired()]:
        _retired.pop(place, None)
    _retired[place_of(values)] = StorageWeakRef(values.untyped_storage())


def refuse_retired(values: Tensor) -> None:
    """Raises RuntimeError for values that `retire` was given, or that share their memory."""
    if not _retired or place_of(values) not in _retired or is_spared(values):
        return
    if not any(claimed(place_of(values)) for claimed in _claims):
        raise RuntimeError(
            "sparse_conv2d: these values belong to a pattern that a layer had before a rewire or a "
            "load; take them from the model again (such as dict(model.named_parameters()))"
        )


def spare(values: Tensor) -> Tensor:
    """`values`, which a pass has taken while they were a layer's: it may go on with them."""
    setattr(values, _SPARED, True)
    return values


def is_spared(values: Tensor) -> bool:
    """Whether a pass has these values from `spare`."""
    return hasattr(values, _SPARED)


def place_of(values: Tensor) -> tuple[int, int]:
    return values.untyped_storage()._cdata, int(values.storage_offset())
