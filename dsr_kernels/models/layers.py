"""What the models share: a factory of sparse or dense layers, and the paper's initialisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from dsr_kernels.backends.blocks import check_is_block_size
from dsr_kernels.distribution import layer_nnz
from dsr_kernels.nn import SparseConv2d, SparseLinear, SparseModule, named_sparse_modules
from dsr_kernels.nn.from_dense import DenseLayer
from dsr_kernels.topology import Topology, fitting_block_size


class LayerFactory:
    """Builds the layers of one model; ``sparse`` says whether the sparsifiable ones are sparse.

    The dense twin of a model is the same code with ``sparse=False``. It has the same modules, names
    and shapes.
    """

    def __init__(
        self,
        sparse: bool,
        sparsity: float,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        block_size: int = 1,
    ) -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity: expected 0 <= sparsity < 1, got {sparsity}")
        check_is_block_size(block_size)
        self.sparse = sparse
        self.generator = generator
        self.options: dict[str, Any] = {
            "device": device or torch.get_default_device(),
            "dtype": dtype,
        }
        self.sparse_options = {**self.options, "sparsity": sparsity, "generator": generator}
        self.block_size = block_size

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        """A convolution of the kind the paper makes sparse; 'same'-sized at stride 1, no bias."""
        if not self.sparse:
            return _sparsifiable(self.dense_conv(inputs, outputs, kernel, stride))
        options = self._sparse_options(outputs)
        return SparseConv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, **options)

    def dense_conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        """A convolution that stays dense in the paper: a stem, or the 1x1 of a shortcut."""
        # skip_init: `initialize_` draws every weight, from the model's own generator.
        return skip_init(
            nn.Conv2d, inputs, outputs, kernel, stride, kernel // 2, bias=False, **self.options
        )

    def linear(self, inputs: int, outputs: int, bias: bool) -> nn.Module:
        """A fully connected layer of the kind that the paper makes sparse."""
        if not self.sparse:
            return _sparsifiable(skip_init(nn.Linear, inputs, outputs, bias=bias, **self.options))
        return SparseLinear(inputs, outputs, bias=bias, **self._sparse_options(outputs))

    def _sparse_options(self, outputs: int) -> dict[str, Any]:
        """With the largest block size of at most the model's that the outputs are blocks of."""
        size = fitting_block_size((outputs,), self.block_size)
        return {**self.sparse_options, "block_size": size}

    def dense_linear(self, inputs: int, outputs: int) -> nn.Module:
        """A fully connected layer that stays dense in the paper."""
        return skip_init(nn.Linear, inputs, outputs, **self.options)

    def norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, **self.options)

    def norm1d(self, channels: int) -> nn.Module:
        return nn.BatchNorm1d(channels, **self.options)


def _sparsifiable(module: nn.Module) -> nn.Module:
    """Notes on a layer of the dense twin that it stands for a sparse one."""
    module.sparsifiable = True
    return module


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, rounded to the nearest integer, at least 1."""
    if width <= 0:
        raise ValueError(f"width: expected a positive number, got {width}")
    return max(1, round(channels * width))


def lay_out_(
    model: nn.Module,
    sparsity: float,
    distribution: str,
    granularity: str,
    generator: torch.Generator | None,
) -> None:
    """Draws the model's sparse patterns and all its weights anew.

    `distribution` is "uniform", "er" or "erk", see distribution.layer_nnz. `granularity` is
    "weight", or "kernel" for whole k x k kernels, as many as each layer's share holds.
    """
    layers = list(named_sparse_modules(model))
    shapes = [module.weight_shape for _, module in layers]
    sizes = [module.block_size for _, module in layers]
    counts = layer_nnz(shapes, sparsity, distribution, block_sizes=sizes)
    draw = Topology.random_kernels if granularity == "kernel" else Topology.random
    for (_, module), nnz in zip(layers, counts, strict=True):
        old, size = module.weight_values, module.block_size
        options = {"block_size": size, "generator": generator, "device": old.device}
        drawn = draw(module.weight_shape, nnz, **options)
        values = torch.empty(drawn.blocks, size, dtype=old.dtype, device=old.device)
        module.replace_topology(drawn.crow_indices, drawn.col_indices, values)
    initialize_(model, generator)


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of the weight the layer stands for, sparse or dense; None for other modules."""
    if isinstance(module, SparseModule):
        return tuple(module.weight_shape)
    if isinstance(module, DenseLayer):
        return tuple(module.weight.shape)
    return None


def weight_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """(name, layer, stored weight) of each convolution and fully connected layer.

    The stored weight of a sparse layer is its non-zeros [blocks, block_size].
    """
    for name, module in model.named_modules():
        if isinstance(module, SparseModule):
            yield name, module, module.weight_values
        elif isinstance(module, DenseLayer):
            yield name, module, module.weight


@torch.no_grad()
def initialize_(model: nn.Module, generator: torch.Generator | None) -> None:
    """The paper's initialisation: conv N(0, sqrt(2 / (k k C_out))), FC U(+-1 / sqrt(fan_in)).

    The scale does not depend on the sparsity. A sparse layer draws its non-zeros only. Batch norm
    keeps weight 1 and bias 0.
    """
    for _, module, weight in weight_tensors(model):
        shape = weight_shape(module)
        assert shape is not None  # it has a weight
        draw_(weight, shape, generator)
        if isinstance(module, (nn.Linear, SparseLinear)) and module.bias is not None:
            draw_(module.bias, shape, generator)


def draw_(tensor: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> None:
    """Fills `tensor`, of any size, as `initialize_` fills a weight of `shape`."""
    outputs, inputs, *kernel = shape
    if kernel:
        tensor.normal_(0.0, math.sqrt(2.0 / (math.prod(kernel) * outputs)), generator=generator)
    else:
        bound = 1.0 / math.sqrt(inputs)
        tensor.uniform_(-bound, bound, generator=generator)
