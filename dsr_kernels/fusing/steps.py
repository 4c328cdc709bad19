"""What a fused forward calls in place of its layers: each step decides as it runs.

The graph says where a value may stay deferred. Whether it does, the step reads off the modules as
they are now: one that has got hooks, another class or another mode computes by itself, on tensors.

`how` says what may come of a step:

    later    anything: the next step, which is the only one, takes it
    takers   Deferred, if every layer of `takers` computes it while reading; else Held
    held     Held: several go on with it
    whole    a tensor
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from dsr_kernels.fusing import convolve, norms
from dsr_kernels.fusing.plain import is_plain
from dsr_kernels.fusing.values import Deferred, Held, Other, Pending, hold, whole

Modules = tuple[nn.Module, ...]


def tensor(value: Any) -> Any:
    """For code that is not ours."""
    return _made(value)


def keep(value: Any) -> Any:
    """For several steps."""
    return Held(value) if isinstance(value, Tensor) else value


def conv(layer: nn.Module, value: Any, how: str, wanted: Modules = ()) -> Any:
    """A convolution. `wanted` are the norms that go on with its output, where it is made here."""
    value = _deferred(value)
    if not convolve.can_wait(layer):
        return _settle(_by_itself(layer, value), how)
    pending = convolve.pending(layer, value)
    return pending if how == "later" else _settle(convolve.run(pending, wanted), how)


def norm(layer: nn.Module, value: Any, how: str, takers: Modules = ()) -> Any:
    """Batch norm."""
    if isinstance(value, Pending):
        if value.scale is None and convolve.can_fold(value, layer):
            assert isinstance(layer, nn.BatchNorm2d)
            bias: Any = value.layer.bias
            scale, shift = norms.folded(layer, bias)
            folded = value._replace(scale=scale, shift=shift)
            return folded if how == "later" else _settle(convolve.run(folded), how)
        value = convolve.run(value, (layer,))
    held = hold(value)
    if not norms.applies(layer, held.x):
        return _settle(_by_itself(layer, held), how)
    assert isinstance(layer, nn.BatchNorm2d)
    return _settle(Deferred(held, norms.affine(layer, held)), how, takers)


def relu(layer: nn.Module | None, value: Any, how: str, takers: Modules = ()) -> Any:
    """ReLU, by a layer or (None) by a function."""
    if layer is not None and not is_plain(layer, nn.ReLU):
        return _settle(_by_itself(layer, value), how)
    if isinstance(value, Pending) and value.scale is not None:
        return _settle(convolve.run(value._replace(relu=True)), how)
    value = _deferred(value)
    if not isinstance(value, Deferred):
        given = whole(value)
        if not isinstance(given, Tensor) or not takers:
            return _settle(torch.relu(given) if layer is None else layer(given), how)
        value = Deferred(hold(value), None)
    return _settle(value._replace(relu=True), how, takers)


def skip(layer: nn.Module, value: Any, how: str, takers: Modules = ()) -> Any:
    """A layer that may have nothing to do: nn.Identity, or dropout in inference."""
    idle = is_plain(layer, nn.Identity) or (
        (is_plain(layer, nn.Dropout) or is_plain(layer, nn.Dropout2d)) and not layer.training
    )
    if not idle:
        return _settle(_by_itself(layer, value), how)
    return value if how == "later" else _settle(_deferred(value), how, takers)


def add(one: Any, other: Any, how: str, wanted: Modules = (), in_place: bool = False) -> Any:
    """one + other. `wanted` are the norms that go on with the sum.

    One that was written in place has the shape and dtype of `one`, which nobody else goes on with.
    """
    for first, second in ((one, other), (other, one)):
        if isinstance(first, Pending):
            if isinstance(second, Pending) and second.scale is None and first.scale is not None:
                continue
            second = hold(_made(second)) if isinstance(second, Pending) else hold(second)
            if isinstance(second.x, Tensor) and convolve.takes_residual(first, second.x):
                summed = first._replace(residual=second)
                if how == "later" and summed.scale is not None:
                    return summed
                return _settle(convolve.run(summed, wanted), how)
            made = convolve.run(first)
            one, other = (made, second) if first is one else (second, made)
            break
    one, other = _deferred(one), _deferred(other)
    for first, second in ((one, other), (other, one)):
        if isinstance(first, Deferred) and (more := _other(first, second)) is not None:
            return _settle(first._replace(other=more), how)
    left, right = _used(one), _used(other)
    if in_place and not _alike(left, right):
        return _settle(operator.iadd(_made(one), right), how)
    return _settle(left + right, how)


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype


def _by_itself(layer: nn.Module, value: Any) -> Any:
    """The layer's own output. It may have been exchanged for one that writes to its input."""
    y = layer(_made(value))
    if isinstance(value, Held):
        value.mean = value.variance = None
    return y


def _other(first: Deferred, second: Any) -> Other | None:
    """`second`, as it is added in the pass that makes `first`; None if it cannot be."""
    if first.relu or first.by is None or first.other is not None:
        return None
    if isinstance(second, Deferred) and not second.relu and second.other is None:
        more = Other(second.held, second.by)
    else:
        more = Other(hold(second), None)
    x, y = first.held.x, more.held.x
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        return None
    return more if y.device == x.device else None


def _used(value: Any) -> Any:
    """The tensor, for an operation of ours."""
    return value.x if isinstance(value, Held) else whole(value)


def _deferred(value: Any) -> Any:
    """The value, a convolution that waits made."""
    return convolve.run(value) if isinstance(value, Pending) else value


def _made(value: Any) -> Any:
    return whole(_deferred(value))


def _settle(value: Any, how: str, takers: Modules = ()) -> Any:
    """The value, as far made as those who go on with it need."""
    if how == "later":
        return value
    if how == "takers" and isinstance(value, Deferred) and _taken(value, takers):
        return value
    made = value if isinstance(value, Held) else whole(value)
    if how == "whole":
        return whole(made)
    return made if isinstance(made, Held) else keep(made)


def _taken(value: Deferred, takers: Modules) -> bool:
    return all(convolve.takes(layer, value) for layer in takers)
