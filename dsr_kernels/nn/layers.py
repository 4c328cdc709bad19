"""Drop-in sparse layers: SparseConv2d for nn.Conv2d, SparseLinear for nn.Linear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsr_kernels.nn import from_dense, functional
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.ops import library

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SparseConv2d(SparseModule):
    """nn.Conv2d with a sparse weight: all of its arguments, then how many non-zeros and where from.

    Input [N, C, H, W] or [C, H, W], any memory format and strides; output in the input's format.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float = 0.9,
        nnz: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """nnz = floor((1 - sparsity) * numel), at least 1, unless `nnz` is given.

        The pattern is uniform over the weight and drawn from `generator` (a CPU one; the default
        generator if None) in O(nnz + O): nothing dense ever exists. Raises ValueError by name.
        """
        kernel_size = _pair("kernel_size", kernel_size, 1)
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups: expected an integer of at least 1, got {groups!r}")
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value < 1 or value % groups:
                raise ValueError(
                    f"{name}: expected a positive multiple of groups={groups}, got {value}"
                )
        shape = (out_channels, in_channels // groups, *kernel_size)
        super().__init__(shape, bias, device, dtype, sparsity, nnz, generator)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.groups = kernel_size, groups
        self.stride = _pair("stride", stride, 1)
        self.dilation = _pair("dilation", dilation, 1)
        self.padding = padding if isinstance(padding, str) else _pair("padding", padding, 0)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode: expected one of {PADDING_MODES}, got {padding_mode!r}")
        self.padding_mode = padding_mode
        self._sides = self._padding_sides()

    def _padding_sides(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right); 'same' puts an odd one below and to the right, like torch."""
        if not isinstance(self.padding, str):
            h, w = self.padding
            return h, h, w, w
        if self.padding == "valid":
            return 0, 0, 0, 0
        if self.padding != "same":
            raise ValueError(f"padding: expected integers, 'same' or 'valid', got {self.padding!r}")
        if self.stride != (1, 1):
            raise ValueError(f"padding: 'same' needs stride 1, got stride={self.stride}")
        total_h, total_w = (
            d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)
        )
        return total_h // 2, total_h - total_h // 2, total_w // 2, total_w - total_w // 2

    def forward(self, x: Tensor) -> Tensor:
        sides = self._sides
        if self.padding_mode != "zeros":
            library.check_input(
                x.unsqueeze(0) if x.dim() == 3 else x, self.weight_shape, self.groups
            )
            top, bottom, left, right = sides
            x = F.pad(x, (left, right, top, bottom), mode=self.padding_mode)
            sides = (0, 0, 0, 0)
        return functional.sparse_conv2d(
            x,
            self.weight_values,
            self.bias,
            self.crow_indices,
            self.col_indices,
            self.weight_shape,
            self.stride,
            sides,
            self.dilation,
            self.groups,
        )

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        sparsity: float | None = None,
        *,
        nnz: int | None = None,
        mask: Tensor | None = None,
        keep: str = "magnitude",
        generator: torch.Generator | None = None,
    ) -> SparseConv2d:
        """The sparse twin of `conv`, with its arguments, its bias and its weights at the non-zeros.

        The pattern is the mask's, or as many entries as `sparsity` (or `nnz`) leaves: the largest
        in magnitude or random ones. Raises TypeError for a module that does more than nn.Conv2d.
        """
        from_dense.check_dense(conv, nn.Conv2d)
        topology = from_dense.choose_topology(conv.weight, sparsity, nnz, mask, keep, generator)
        arguments = from_dense.conv_arguments(conv)
        sparse = cls(**arguments, dtype=conv.weight.dtype, nnz=topology.nnz)
        from_dense.fill_sparse(sparse, conv, topology)
        return sparse

    def dense_module(self) -> nn.Conv2d:
        """The nn.Conv2d that computes the same: O(numel) memory."""
        conv = nn.Conv2d(**from_dense.conv_arguments(self), dtype=self.weight_values.dtype)
        from_dense.fill_dense(conv, self)
        return conv

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return f"{text}, nnz={self.nnz}, sparsity={self.sparsity:.4g}"


class SparseLinear(SparseModule):
    """nn.Linear with a sparse weight: input [..., I], output [..., O]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float = 0.9,
        nnz: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """As SparseConv2d: nnz = floor((1 - sparsity) * numel), or `nnz` if given."""
        shape = (out_features, in_features)
        super().__init__(shape, bias, device, dtype, sparsity, nnz, generator)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        return functional.sparse_linear(
            x, self.weight_values, self.bias, self.crow_indices, self.col_indices, self.weight_shape
        )

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        sparsity: float | None = None,
        *,
        nnz: int | None = None,
        mask: Tensor | None = None,
        keep: str = "magnitude",
        generator: torch.Generator | None = None,
    ) -> SparseLinear:
        """The sparse twin of `linear`; see SparseConv2d.from_dense."""
        from_dense.check_dense(linear, nn.Linear)
        topology = from_dense.choose_topology(linear.weight, sparsity, nnz, mask, keep, generator)
        arguments = from_dense.linear_arguments(linear)
        sparse = cls(**arguments, dtype=linear.weight.dtype, nnz=topology.nnz)
        from_dense.fill_sparse(sparse, linear, topology)
        return sparse

    def dense_module(self) -> nn.Linear:
        """The nn.Linear that computes the same: O(numel) memory."""
        linear = nn.Linear(**from_dense.linear_arguments(self), dtype=self.weight_values.dtype)
        from_dense.fill_dense(linear, self)
        return linear

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, nnz={self.nnz}, sparsity={self.sparsity:.4g}"
        )


def named_sparse_modules(model: nn.Module) -> Iterator[tuple[str, SparseModule]]:
    """(fully qualified name, module) of every sparse layer of `model`, a shared one once."""
    for name, module in model.named_modules():
        if isinstance(module, SparseModule):
            yield name, module


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(
            f"{name}: expected an integer of at least {least} or two of them, got {value!r}"
        )
    return pair
