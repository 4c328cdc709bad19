"""What goes from step to step of a fused forward, in place of a tensor that is not made yet.

Held       a tensor, with its mean and variance if whoever stored it has taken them
Deferred   relu((x - center) * scale + shift + other): for a convolution's input, or one pass
Pending    a convolution that has yet to run, with what is to happen to its output
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from dsr_kernels.backends.fused import Affine, Prologue
from dsr_kernels.ops.fused.elementwise import channel_affine


class Held:
    """`x` is what steps use: where an operation has handed its input on, that. `given` is it too,
    for code that is not ours and may write to it."""

    def __init__(self, x: Tensor) -> None:
        self.x = self.given = x
        self.mean: Tensor | None = None
        self.variance: Tensor | None = None


class Other(NamedTuple):
    held: Held
    by: Affine | None


class Deferred(NamedTuple):
    held: Held
    by: Affine | None
    relu: bool = False
    other: Other | None = None


class Pending(NamedTuple):
    layer: nn.Module
    held: Held  # what it reads
    prologue: Prologue  # what it does to that while reading
    fused: bool  # whether the fused operation computes it
    shared: bool  # whether others go on with its input, too
    scale: Tensor | None = None  # of inference, where batch norm is folded in
    shift: Tensor | None = None
    residual: Held | None = None
    relu: bool = False


Value = Tensor | Held | Deferred


def hold(value: Any) -> Held:
    """The value as a Held; one that is deferred is made."""
    return value if isinstance(value, Held) else Held(whole(value))


def whole(value: Any) -> Any:
    """The value as a tensor, made if need be. Other things than values stay what they are."""
    if isinstance(value, Held):
        return value.given
    if not isinstance(value, Deferred):
        return value
    held, by, relu, other = value
    if by is None:
        return held.x.relu() if relu else held.given
    x, more = (None, None) if other is None else (other.held.x, other.by)
    return channel_affine(held.x, by, relu, x, more)
