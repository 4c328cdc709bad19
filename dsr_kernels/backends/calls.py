"""What prepared calls of all backends share: what they are looked up by, and their results.

What an op refuses, and how it runs, depends on the pattern and on what its tensors look like, never
on what else they hold. So the first call of a look is checked and planned, and kept beside the
plans of its pattern (`patterns.keep_call`); the next ones go from a look-up to the kernel. Else
Python would be most of the time of a small layer.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.pattern import Plan

AnyCall = TypeVar("AnyCall", bound="Call")


def look(kind: str, shape: ConvShape, x: Tensor) -> Hashable | None:
    """What a call is looked up by, beside what its tensors look like; None for no dense tensor."""
    try:
        return kind, shape, torch.get_num_threads(), x.shape
    except RuntimeError:  # sparse, or nested
        return None


def are_contiguous(*tensors: Tensor | None) -> bool:
    return all(each is None or each.is_contiguous() for each in tensors)


class Call:
    """What calls have whose result is an activation.

    Their tensors look like those they were made with. They raise TypeError, with its name, for one
    whose memory was freed.
    """

    __slots__ = ("__weakref__", "device", "plans", "size", "strides")

    plans: tuple[Plan, ...]  # that it runs

    def __init__(self, out: Tensor) -> None:
        self.size, self.strides, self.device = out.shape, out.stride(), out.device

    def empty(self, dtype: torch.dtype, kept: bool = False) -> Tensor:
        """A tensor for the result. `kept`: in memory that is kept from step to step, if any is."""
        return torch.empty_strided(self.size, self.strides, dtype=dtype, device=self.device)

    def reshaped(self: AnyCall, out: Tensor) -> AnyCall:
        """The same call with a result of this shape, whose elements lie as in the other."""
        twin = copy.copy(self)
        twin.size, twin.strides = out.shape, out.stride()
        return twin


class ForwardCall(Protocol):
    """y = conv2d(pad(x), W) + bias."""

    plans: tuple[Plan, ...]

    def empty(self, dtype: torch.dtype, kept: bool = False) -> Tensor: ...
    def reshaped(self: AnyForward, out: Tensor) -> AnyForward: ...
    def into(self, out: Tensor, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor: ...


class BackwardCall(Protocol):
    """The gradients of x and of the values."""

    plans: tuple[Plan, ...]

    def empty(self, dtype: torch.dtype, kept: bool = False) -> Tensor: ...
    def reshaped(self: AnyBackward, out: Tensor) -> AnyBackward: ...
    def into(
        self, out: Tensor, out_values: Tensor, grad: Tensor, values: Tensor, x: Tensor
    ) -> None: ...


AnyForward = TypeVar("AnyForward", bound=ForwardCall)
AnyBackward = TypeVar("AnyBackward", bound=BackwardCall)


class GradWeightCall(Protocol):
    """The gradient of the values alone, as a first layer has it."""

    plans: tuple[Plan, ...]

    def into(self, out: Tensor, x: Tensor, grad: Tensor) -> Tensor: ...


class Preparer(Protocol):
    """The functions of a backend that make calls of arguments that have been checked.

    They keep them for others of the look of `tensors`. They give None where something has to be
    copied or cut for the kernels.
    """

    def prepare_forward(
        self,
        seen: Hashable | None,
        tensors: Sequence[Tensor | None],
        out: Tensor,
        x: Tensor,
        weight: tuple[Tensor, Tensor, Tensor],  # values, crow_indices, col_indices
        shape: ConvShape,
        numbers: Sequence[Tensor | None],  # of channels: bias, scales and so on
    ) -> ForwardCall | None: ...

    def prepare_backward(
        self,
        seen: Hashable | None,
        tensors: Sequence[Tensor | None],
        out: Tensor,
        grad: Tensor,
        x: Tensor,
        weight: tuple[Tensor, Tensor, Tensor],
        shape: ConvShape,
    ) -> BackwardCall | None: ...

    def prepare_grad_weight(
        self,
        seen: Hashable | None,
        x: Tensor,
        grad: Tensor,
        dtype: torch.dtype,  # of the values
        pattern: tuple[Tensor, Tensor],
        shape: ConvShape,
    ) -> GradWeightCall | None: ...
