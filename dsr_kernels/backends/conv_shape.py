"""What a convolution is, but for the sizes of its images: the twin of csrc/common/conv_shape.h."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Pair = tuple[int, int]  # (height, width)
Quad = tuple[int, int, int, int]


class ConvShape(NamedTuple):
    """The arguments of a convolution that are no tensors, in the order of the ops' schemas.

    Every op, launcher and plan takes them as this one value. It is hashable, as the keys of plans
    must be. A linear layer is the 1x1 convolution of 1x1 images.
    """

    weight_shape: Quad  # (O, C // groups, KH, KW)
    stride: Pair
    padding: Quad  # top, bottom, left, right
    dilation: Pair
    groups: int

    @property
    def rows(self) -> int:
        """O, the output channels of all groups."""
        return self.weight_shape[0]

    @property
    def in_channels(self) -> int:
        """C, the input channels of all groups."""
        return self.weight_shape[1] * self.groups

    @property
    def kernel(self) -> Pair:
        """(KH, KW)."""
        return self.weight_shape[2:]


def conv_shape(
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> ConvShape:
    """A ConvShape of any sequences, whose lengths are not checked here.

    Users may give lists, and torch's dispatcher does; the key of a plan must be hashable.
    """
    sizes = weight_shape, stride, padding, dilation
    are_tuples = type(weight_shape) is type(stride) is type(padding) is type(dilation) is tuple
    if are_tuples and not torch.compiler.is_compiling():
        return _known(*sizes, groups)
    return _of_tuples(*(tuple(each) for each in sizes), groups)


_of_tuples: Callable[..., ConvShape] = ConvShape
_known = functools.lru_cache(maxsize=4096)(_of_tuples)
