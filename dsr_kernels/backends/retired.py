"""Values of patterns that are gone: tensors that still hold what a layer's parameter held before.

`{k: v.detach() for k, v in model.named_parameters()}` keeps a layer's values over a rewire. With
the new pattern they would be other weights; where their number stays, nothing would show.
"""

from __future__ import annotations

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

# By address of the storage. A weak reference keeps that address from being given to another one.
_retired: dict[int, StorageWeakRef] = {}


def retire(values: Tensor) -> None:
    """From now on no op takes values in this memory."""
    for place in [place for place, storage in _retired.items() if storage.expired()]:
        _retired.pop(place, None)
    storage = values.untyped_storage()
    _retired[storage._cdata] = StorageWeakRef(storage)


def revive(values: Tensor) -> None:
    """Takes `retire` back."""
    _retired.pop(values.untyped_storage()._cdata, None)


def refuse_retired(values: Tensor) -> None:
    """Raises RuntimeError for values that `retire` was given, or that share their memory."""
    if _retired and values.untyped_storage()._cdata in _retired:
        raise RuntimeError(
            "sparse_conv2d: these values belong to a pattern that a layer had before a rewire or a "
            "load; take them from the model again (such as dict(model.named_parameters()))"
        )
