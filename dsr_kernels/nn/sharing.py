"""Layers that share tensors, and what a change of one of them means for the others.

- Index tensors alone: the layer that changes takes others of its own, and the rest stay whole.
- Index tensors and values, as the same objects: they are one weight, and change together.
- Values alone: who shares them must be given the same pattern, as a rewire and a load of the whole
  model do. Until then its values belong to positions of another layer, and using them is refused.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Collection, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from dsr_kernels.backends import retired
from dsr_kernels.backends.held import exchange
from dsr_kernels.backends.patterns import patterns

INDICES = ("crow_indices", "col_indices")


class Layer(Protocol):
    """A PatternOwner."""

    crow_indices: Tensor
    col_indices: Tensor
    _buffers: dict[str, Tensor | None]
    _parameters: Any  # of parameters by name

    def label(self) -> str: ...
    def _own(self) -> None: ...
    def _has_indices(self, crow_indices: Tensor, col_indices: Tensor) -> bool: ...
    def _leave_behind(self, values: Tensor | None) -> None: ...
    def _leave_to(self, other: Any) -> None: ...


# Every layer there is.
living: weakref.WeakSet[Any] = weakref.WeakSet()


def join(layer: Layer) -> None:
    """The layer exists."""
    with exchange:  # another thread may be looking through them
        living.add(layer)


_looked_through = threading.local()


@contextlib.contextmanager
def looked_through() -> Iterator[None]:
    """Within, this thread changes many layers: who holds a tensor is looked up, for to look through
    all layers for each would take a time that grows with the square of their number.
    """
    holders: dict[int, list[Any]] = {}
    for layer in list(living):
        held = [layer._parameters.get("weight_values"), *map(layer._buffers.get, INDICES)]
        for tensor in held:
            holders.setdefault(id(tensor), []).append(layer)
    _looked_through.holders = holders
    try:
        yield
    finally:
        del _looked_through.holders


def _holders_of(tensor: Tensor) -> Collection[Any]:
    """All layers that hold it, and perhaps some that do not."""
    holders = getattr(_looked_through, "holders", None)
    return list(living) if holders is None else holders.get(id(tensor), ())


def one_weight(layer: Layer) -> list[Layer]:
    """The other layers whose values and index tensors are this one's, as the same objects."""
    return [o for o in _with_values_of(layer) if all(_is_same(o, layer, n) for n in INDICES)]


def has_index_of_another(layer: Layer, name: str) -> bool:
    """Whether a layer that is another weight has this one's index tensor, or shares its memory."""
    index = layer._buffers[name]
    assert index is not None
    holders = [other for other in _holders_of(index) if _is_same(other, layer, name)]
    holders += patterns.owners_in(index)  # all owners are layers
    # A shallow copy of a module has its very dict of tensors.
    others = [other for other in holders if other._buffers is not layer._buffers]
    if not others:
        return False
    together = one_weight(layer)
    return any(other not in together for other in others)


def values_were_exchanged(layer: Layer) -> None:
    """After the layer was given another weight: tells those that share its values.

    The caller has `exchange`.
    """
    sharing = _with_values_of(layer)
    together = one_weight(layer) if sharing else []
    for other in sharing:
        if other in together:
            other._own()
            other._leave_behind(None)
        elif other._has_indices(layer.crow_indices, layer.col_indices):
            other._leave_to(None)
        else:
            other._own()
            other._leave_to(layer)


def left_to(layer: Layer, other: Layer) -> str:
    return (
        f"{layer.label()}: it shares its weight_values with {other.label()}, which has been given "
        "another pattern, so these values do not belong to the positions of this one; give it the "
        "same pattern (load_state_dict of the whole model), or values of its own before: "
        "layer.weight_values = nn.Parameter(layer.weight_values.detach().clone())"
    )


def _is_a_layers(place: tuple[int, int]) -> bool:
    """Whether a layer has its values there; what functional_call lends it is no Parameter."""
    values = (layer._parameters.get("weight_values") for layer in list(living))
    own = (v for v in values if type(v) is nn.Parameter and not v.is_meta)
    return any(retired.place_of(v) == place for v in own)


retired.claim(_is_a_layers)


def _with_values_of(layer: Layer) -> list[Layer]:
    values = layer._parameters.get("weight_values")
    if values is None:
        return []
    return [
        other
        for other in _holders_of(values)
        if other._buffers is not layer._buffers and other._parameters.get("weight_values") is values
    ]


def _is_same(one: Layer, other: Layer, name: str) -> bool:
    return one._buffers.get(name) is other._buffers.get(name)
