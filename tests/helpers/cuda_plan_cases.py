"""Convolutions as sizes, and which pixel meets which tap in them, by trying all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from helpers.cuda_planner import PassShape, forward_shape, grad_input_shape
from hypothesis import strategies as st

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda.plans import Device

DEVICES = [Device(132, 227 << 10), Device(2, 12 << 10)]


@dataclass
class Conv:
    """Sizes of a convolution, channels being those of one group."""

    size: tuple[int, int]  # of the input
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    channels: int = 1
    rows: int = 1
    groups: int = 1

    def reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def output(self, axis: int) -> int:
        padded = self.size[axis] + sum(self.padding[2 * axis : 2 * axis + 2])
        return (padded - self.reach(axis)) // self.stride[axis] + 1

    @property
    def arguments(self) -> tuple:
        weight = (self.groups * self.rows, self.channels, *self.kernel)
        shape = ConvShape(weight, self.stride, self.padding, self.dilation, self.groups)
        x = (self.groups * self.channels, *self.size)
        return x, (weight[0], self.output(0), self.output(1)), shape

    def passes(self) -> tuple[PassShape, PassShape]:
        arguments = self.arguments
        return forward_shape(*arguments), grad_input_shape(*arguments)

    def meetings(self) -> Iterator[tuple]:
        """(output pixel, tap, input pixel) wherever the input has that pixel."""
        spans = [range(self.output(0)), range(self.output(1)), *map(range, self.kernel)]
        for p, q, kh, kw in itertools.product(*spans):
            h = p * self.stride[0] - self.padding[0] + kh * self.dilation[0]
            w = q * self.stride[1] - self.padding[2] + kw * self.dilation[1]
            if 0 <= h < self.size[0] and 0 <= w < self.size[1]:
                yield (p, q), kh * self.kernel[1] + kw, (h, w)


@st.composite
def convolutions(draw) -> Conv:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 5)] * 4))
    size = []
    for k, d, both in zip(kernel, dilation, (sum(padding[:2]), sum(padding[2:])), strict=True):
        least = max(1, d * (k - 1) + 1 - both)
        size.append(draw(st.integers(least, least + 8)))
    counts = draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 2)))
    return Conv(tuple(size), kernel, stride, padding, dilation, *counts)
