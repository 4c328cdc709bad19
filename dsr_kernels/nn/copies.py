"""What becomes of a layer's copies when the layer is rewired: averages that were not told.

An average of weights is a copy of the model that training writes to. After a rewire of the model
its values would be mixed with those of other positions, which no size tells where a layer keeps its
number of non-zeros. So a frozen copy that a rewire has left behind is compared at its next use: it
may stay what it was, as a snapshot does, and may be loaded, but not be written to.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.backends.pattern import is_alone


class Lineage:
    """A layer and the copies that were made of it, and of these."""

    def __init__(self) -> None:
        self.members: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> Lineage:
        return self

    def __reduce__(self) -> tuple[type[Lineage], tuple[()]]:
        return Lineage, ()  # what is unpickled begins one of its own


def keep(values: Tensor) -> Tensor:
    """A copy of the values; where it can be, it takes memory only once they are written to."""
    if is_alone(values):
        try:
            return torch._lazy_clone(values.detach())
        except RuntimeError:  # not memory of torch's own
            pass
    return values.detach().clone()


def written_to(kept: Tensor, values: Tensor) -> bool:
    """Whether the values are no longer those that were kept."""
    if kept.shape != values.shape or kept.dtype != values.dtype:
        return True
    before, now = kept.to(values.device), values.detach()
    return not bool(((before == now) | (before.isnan() & now.isnan())).all())


def left_behind(label: str) -> str:
    return (
        f"{label}: its values were changed although the model that it is a copy of has been "
        "rewired since, and this copy has not. An average has to follow the model "
        "(Rewirer.follow); to copy weights, use load_state_dict; a copy that trains by itself must "
        "not be frozen (weight_values.requires_grad_())"
    )
