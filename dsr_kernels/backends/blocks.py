"""Blocks of output channels: `block_size` consecutive rows of a weight that share their positions.

A weight of O rows then is a BSR matrix of blocks (block_size, 1), in torch's words: crow_indices
[O // block_size + 1], col_indices [blocks], values [blocks, block_size]. With a block size of 1
that is CSR. The block size is not stored: the length of crow_indices says it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_SIZES = (1, 2, 4, 8, 16, 32)


def check_is_block_size(block_size: int) -> None:
    """Raises ValueError unless it is one of the sizes that there are."""
    if type(block_size) is not int or block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size: expected one of {BLOCK_SIZES}, got {block_size!r}")


def block_size_of(crow_indices: Tensor, rows: int) -> int:
    """Of a pattern for a weight of `rows` rows; 0 where crow_indices is of no such pattern."""
    block_rows = crow_indices.numel() - 1
    if block_rows == rows:
        return 1
    size = rows // block_rows if block_rows > 0 else 0
    return size if size in BLOCK_SIZES and size * block_rows == rows else 0


class Expanded(NamedTuple):
    """A pattern of blocks as CSR, for kernels that know no blocks."""

    crow_indices: Tensor  # [O + 1] int32
    col_indices: Tensor  # [nnz] int32
    order: Tensor  # [nnz] int64: which of the flat values each non-zero has

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self)


def expand(crow_indices: Tensor, col_indices: Tensor, block_size: int) -> Expanded:
    """Every row of a block row has the block row's columns. `patterns.plan` can keep it."""
    counts = crow_indices.long().diff()
    of_rows = counts.repeat_interleave(block_size)
    crow = torch.zeros(of_rows.numel() + 1, dtype=torch.int64, device=crow_indices.device)
    torch.cumsum(of_rows, 0, out=crow[1:])
    row = torch.arange(of_rows.numel(), device=crow.device).repeat_interleave(of_rows)
    within = torch.arange(row.numel(), device=crow.device) - crow[row]
    block = crow_indices.long()[row // block_size] + within
    order = block * block_size + row % block_size
    return Expanded(crow.int(), col_indices[block], order)
