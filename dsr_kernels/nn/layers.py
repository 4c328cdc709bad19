"""Drop-in sparse layers: SparseConv1d, SparseConv2d and SparseLinear for torch's."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from dsr_kernels.backends.fused import Prologue
from dsr_kernels.nn import from_dense, functional
from dsr_kernels.nn.conv import SparseConvNd
from dsr_kernels.nn.module import SparseModule
from dsr_kernels.nn.one_node import one_node
from dsr_kernels.ops import results
from dsr_kernels.ops.fused.autograd import Fused


class SparseConv1d(SparseConvNd):
    """nn.Conv1d with a sparse weight: all of its arguments, then how many non-zeros and where from.

    Input [N, C, L] or [C, L], any strides; output [N, O, Q] or [O, Q].
    """

    dims = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float = 0.9,
        nnz: int | None = None,
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        """As SparseConv2d: nnz = floor((1 - sparsity) * numel), or `nnz` if given."""
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            sparsity,
            nnz,
            generator,
            block_size,
        )

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return one_node(self, input)
        self._check_use()
        sides = self._sides
        if self.padding_mode != "zeros":
            functional.check_sequence(input, self.weight_shape, self.groups)
            input = F.pad(input, sides, mode=self.padding_mode)
            sides = (0, 0)
        shape: Any = self.weight_shape, self.stride, sides, self.dilation, self.groups
        return functional.sparse_conv1d(input, *self._weight(), *shape)

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv1d,
        sparsity: float | None = None,
        *,
        nnz: int | None = None,
        mask: Tensor | None = None,
        keep: str = "magnitude",
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> SparseConv1d:
        """The sparse twin of `conv`; see SparseConv2d.from_dense."""
        topology = from_dense.choose_topology(
            conv, nn.Conv1d, sparsity, nnz, mask, keep, generator, block_size
        )
        return from_dense.sparse_twin(cls, conv, topology)

    def dense_module(self) -> nn.Conv1d:
        """The nn.Conv1d that computes the same: O(numel) memory."""
        return from_dense.dense_twin(nn.Conv1d, self)


class SparseConv2d(SparseConvNd):
    """nn.Conv2d with a sparse weight: all of its arguments, then how many non-zeros and where from.

    Input [N, C, H, W] or [C, H, W], any memory format and strides; output in the input's format.
    """

    dims = 2

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
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        """nnz = floor((1 - sparsity) * numel), at least 1, unless `nnz` is given.

        block_size: so many consecutive output channels share their positions (1, 2, 4, 8, 16 or 32,
        a divisor of the output channels of each group); nnz then is a multiple of it.

        The pattern is uniform over the weight and drawn from `generator` (a CPU one; the default
        generator if None) in O(nnz + O): nothing dense ever exists. Raises ValueError or TypeError
        that names the argument.
        """
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            sparsity,
            nnz,
            generator,
            block_size,
        )

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return one_node(self, input)
        self._check_use()
        sides = self._sides
        if self.padding_mode != "zeros":
            x = input.unsqueeze(0) if input.dim() == 3 else input
            results.check_input(x, self.weight_shape, self.groups)
            top, bottom, left, right = sides
            input = F.pad(input, (left, right, top, bottom), mode=self.padding_mode)
            sides = (0, 0, 0, 0)
        shape: Any = self.weight_shape, self.stride, sides, self.dilation, self.groups
        return functional.sparse_conv2d(input, *self._weight(), *shape)

    def fused(
        self, x: Tensor, prologue: Prologue, residual: Tensor | None, statistics: bool
    ) -> Fused:
        """forward with more in it: see functional.sparse_conv2d_fused. Pads with zeros only."""
        self._check_use()
        return functional.sparse_conv2d_fused(
            x, prologue, *self._weight(), *self._shape(), residual=residual, statistics=statistics
        )

    def folded(
        self,
        x: Tensor,
        prologue: Prologue,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        """Inference, without the bias: see functional.sparse_conv2d_folded."""
        self._check_use()
        values, _, crow_indices, col_indices = self._weight()
        return functional.sparse_conv2d_folded(
            *(x, prologue, values, crow_indices, col_indices, *self._shape()),
            scale=scale,
            shift=shift,
            residual=residual,
            relu=relu,
        )

    def _shape(self) -> tuple[Any, ...]:
        return self.weight_shape, self.stride, self._sides, self.dilation, self.groups

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        sparsity: float | None = None,
        *,
        nnz: int | None = None,
        mask: Tensor | None = None,
        keep: str = "magnitude",
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> SparseConv2d:
        """The sparse twin of `conv`, with its arguments, its bias and its weights at the non-zeros.

        The pattern is the mask's, or `sparsity` or `nnz` says how many weights are kept and `keep`
        which ones: the largest by 'magnitude' (of blocks, by its mean), 'random' ones, or whole
        random 'kernels'. Raises TypeError for a module that does more than nn.Conv2d, ValueError
        for wrong arguments and for a mask that breaks a block, which it names.
        """
        topology = from_dense.choose_topology(
            conv, nn.Conv2d, sparsity, nnz, mask, keep, generator, block_size
        )
        return from_dense.sparse_twin(cls, conv, topology)

    def dense_module(self) -> nn.Conv2d:
        """The nn.Conv2d that computes the same: O(numel) memory."""
        return from_dense.dense_twin(nn.Conv2d, self)


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
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        """As SparseConv2d: nnz = floor((1 - sparsity) * numel), or `nnz` if given."""
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        shape = (out_features, in_features)
        super().__init__(shape, bias, device, dtype, sparsity, nnz, generator, block_size)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return one_node(self, input)
        self._check_use()
        return functional.sparse_linear(input, *self._weight(), self.weight_shape)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        sparsity: float | None = None,
        *,
        nnz: int | None = None,
        mask: Tensor | None = None,
        keep: str = "magnitude",
        block_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> SparseLinear:
        """The sparse twin of `linear`; see SparseConv2d.from_dense."""
        which = sparsity, nnz, mask, keep, generator, block_size
        topology = from_dense.choose_topology(linear, nn.Linear, *which)
        return from_dense.sparse_twin(cls, linear, topology)

    def dense_module(self) -> nn.Linear:
        """The nn.Linear that computes the same: O(numel) memory."""
        return from_dense.dense_twin(nn.Linear, self)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._size_repr()}"
        )


def named_sparse_modules(model: nn.Module) -> Iterator[tuple[str, SparseModule]]:
    """(fully qualified name, module) of every sparse layer of `model`, a shared one once."""
    for name, module in model.named_modules():
        if isinstance(module, SparseModule):
            module.know_name(name)
            yield name, module
