"""Layers of blocks beside layers of single weights that stand for their blocks' means.

A layer of O output channels in blocks of G has the patterns of one of O / G channels. Where the
small layer's weights are the blocks' mean magnitudes, a method must rewire both alike.
"""

from __future__ import annotations

import numpy as np
import torch
from helpers.method_cases import Bundle
from hypothesis import strategies as st
from torch import Tensor, nn

from dsr_kernels.nn import SparseConv2d, SparseLinear, SparseModule
from dsr_kernels.topology import Topology

BLOCK_SIZES = (2, 4, 8)  # of which sums of eighths are exact
Rows = dict[int, tuple[float, ...]]  # block: its values and optimizer state


def fill(layer: SparseModule, blocks: Tensor, values: Tensor) -> None:
    """Blocks at these ascending positions of a weight of O / G rows, with values [blocks, G]."""
    pattern = Topology.from_positions(layer.weight_shape, blocks, layer.block_size)
    layer.replace_topology(pattern.crow_indices, pattern.col_indices, values)


def eighths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """On a grid, so that means are exact and many tie."""
    return torch.randint(-8, 9, shape, generator=generator) / 8


@st.composite
def block_layers(draw, size: int) -> SparseModule:
    """A convolution or linear layer of blocks, from a single block to full."""
    rows, inputs = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    if draw(st.booleans()):
        layer = SparseLinear(2 * inputs, rows * size, nnz=size, block_size=size)
    else:
        groups = draw(st.sampled_from([1, 2]))
        layer = SparseConv2d(
            groups * inputs,
            groups * rows * size,
            draw(st.sampled_from([1, 2, (1, 3)])),
            draw(st.sampled_from([1, 2])),
            draw(st.sampled_from([0, 1])),
            groups=groups,
            nnz=size,
            block_size=size,
        )
    most = layer.numel // size
    blocks = draw(st.one_of(st.sampled_from([1, most, most // 2 or 1]), st.integers(1, most)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    positions = torch.randperm(most, generator=generator)[:blocks].sort().values
    fill(layer, positions, eighths((blocks, size), generator))
    return layer


@st.composite
def bundles(draw, sizes: tuple[int, ...] = BLOCK_SIZES, mixed: bool = False) -> Bundle:
    """Layers of one block size, or with `mixed` each of its own."""
    chosen = st.sampled_from(sizes)
    one = draw(chosen)
    count = draw(st.integers(1, 4))
    return Bundle([draw(block_layers(draw(chosen) if mixed else one)) for _ in range(count)])


def means(layer: SparseModule) -> Tensor:
    """[blocks] of |w|, one row of a block after the other: not the engine's way."""
    values = layer.weight_values.detach()
    return sum(values[:, i].abs() for i in range(layer.block_size)) / layer.block_size


def stand_in(layer: SparseModule) -> SparseModule:
    """Of single weights: O / G output channels, a mean magnitude for each block."""
    rows, size = layer.weight_shape[0] // layer.block_size, layer.block_size
    if isinstance(layer, SparseLinear):
        small: SparseModule = SparseLinear(layer.in_features, rows, nnz=layer.blocks)
    else:
        small = SparseConv2d(
            layer.in_channels,
            rows,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            nnz=layer.blocks,
        )
    assert small.numel * size == layer.numel
    fill(small, layer.topology.linear_positions(), means(layer)[:, None])
    return small


def stand_ins(bundle: Bundle) -> Bundle:
    return Bundle([stand_in(layer) for layer in bundle.layers])


def rows_of(layer: SparseModule, optimizer: torch.optim.Optimizer | None = None) -> Rows:
    """Of each block its values, and every number that the optimizer holds of them."""
    state = optimizer.state.get(layer.weight_values, {}) if optimizer else {}
    held = [layer.weight_values.detach()]
    held += [v for _, v in sorted(state.items()) if torch.is_tensor(v) and v.dim() > 1]
    held = [t for t in held if len(t) == layer.blocks]
    numbers = torch.cat([t.reshape(layer.blocks, -1) for t in held], 1).tolist()
    return dict(zip(layer.topology.linear_positions().tolist(), map(tuple, numbers), strict=True))


def as_oracle(layer: SparseModule) -> tuple[int, dict[int, float]]:
    """As the oracles take a layer: how many blocks it could have, and the means of those it has."""
    positions = layer.topology.linear_positions().tolist()
    return layer.numel // layer.block_size, dict(zip(positions, means(layer).tolist(), strict=True))


def block_means(gradient: np.ndarray, size: int) -> np.ndarray:
    """[O / size, row length] of the magnitudes of a dense gradient."""
    rows = np.abs(gradient.reshape(-1, size, gradient[0].size))
    return rows.sum(1) / size


def patterns(model: nn.Module) -> list[list[int]]:
    modules = [m for m in model.modules() if isinstance(m, SparseModule)]
    return [module.topology.linear_positions().tolist() for module in modules]
