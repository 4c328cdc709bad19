"""What SparseConv1d and SparseConv2d share: the arguments of torch's convolutions, checked."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import ClassVar

import torch

from dsr_kernels.nn.module import SparseModule

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SparseConvNd(SparseModule):
    """A convolution over `dims` dimensions of space; its subclasses compute it.

    A size given as one integer counts for every dimension, as in torch.
    """

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        sparsity: float,
        nnz: int | None,
        generator: torch.Generator | None,
        block_size: int,
    ) -> None:
        kernel = self._sizes("kernel_size", kernel_size, 1)
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups: expected an integer of at least 1, got {groups!r}")
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(value, Integral) or value < 1 or value % groups:
                raise ValueError(
                    f"{name}: expected a positive multiple of groups={groups}, got {value}"
                )
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(shape, bias, device, dtype, sparsity, nnz, generator, block_size, groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.groups = kernel, groups
        self.stride = self._sizes("stride", stride, 1)
        self.dilation = self._sizes("dilation", dilation, 1)
        self.padding = padding if isinstance(padding, str) else self._sizes("padding", padding, 0)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode: expected one of {PADDING_MODES}, got {padding_mode!r}")
        self.padding_mode = padding_mode
        self._sides = self._padding_sides()

    def _sizes(self, name: str, value: int | Sequence[int], least: int) -> tuple[int, ...]:
        sizes = tuple(value) if isinstance(value, Sequence) else (value,) * self.dims
        if len(sizes) != self.dims or not all(isinstance(v, int) and v >= least for v in sizes):
            several = "a tuple of one" if self.dims == 1 else "two of them"
            raise ValueError(
                f"{name}: expected an integer of at least {least} or {several}, got {value!r}"
            )
        return sizes

    def _padding_sides(self) -> tuple[int, ...]:
        """(top, bottom, left, right) or (left, right).

        'same' puts an odd one behind the image, that is below or to the right, like torch.
        """
        if not isinstance(self.padding, str):
            return tuple(side for size in self.padding for side in (size, size))
        if self.padding == "valid":
            return (0, 0) * self.dims
        if self.padding != "same":
            raise ValueError(f"padding: expected integers, 'same' or 'valid', got {self.padding!r}")
        if any(step != 1 for step in self.stride):
            raise ValueError(f"padding: 'same' needs stride 1, got stride={self.stride}")
        totals = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return tuple(side for total in totals for side in (total // 2, total - total // 2))

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        if self.padding != (0,) * self.dims:
            text += f", padding={self.padding!r}"
        if self.dilation != (1,) * self.dims:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return f"{text}, {self._size_repr()}"
