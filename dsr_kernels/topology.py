"""Where the non-zeros of a weight sit.

A weight of shape (O, I/groups, KH, KW), (O, I/groups, K) or (O, I) is a matrix of O rows. Its
columns run over (i * KH + kh) * KW + kw. `block_size` consecutive rows share their positions: it is
a BSR matrix of blocks (block_size, 1), or with a block size of 1 a CSR matrix. `crow_indices`
[O // block_size + 1] and `col_indices` [blocks] are int32 and sorted in each block row; only
positions are counted in 64 bits, so a weight may have more than 2**31 elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from dsr_kernels.backends.address import address
from dsr_kernels.backends.blocks import check_is_block_size
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.pattern import check_int32

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Topology:
    """The pattern of one sparse weight: its shape, and which blocks of it are there."""

    weight_shape: tuple[int, ...]
    crow_indices: Tensor  # [O // block_size + 1] int32
    col_indices: Tensor  # [blocks] int32, sorted in each block row
    block_size: int = 1  # consecutive rows that share their positions

    @property
    def blocks(self) -> int:
        return self.col_indices.numel()

    @property
    def nnz(self) -> int:
        """Non-zeros: weights, of all blocks."""
        return self.blocks * self.block_size

    @property
    def numel(self) -> int:
        return math.prod(self.weight_shape)

    @property
    def rows(self) -> int:
        return self.weight_shape[0]

    @property
    def row_length(self) -> int:
        return math.prod(self.weight_shape[1:])

    @property
    def density(self) -> float:
        return self.nnz / self.numel

    def __repr__(self) -> str:
        size = "" if self.block_size == 1 else f", block_size={self.block_size}"
        return (
            f"Topology(weight_shape={self.weight_shape}, nnz={self.nnz}, "
            f"density={self.density:g}{size})"
        )

    def to(self, device: torch.device | str) -> Topology:
        crow, col = self.crow_indices.to(device), self.col_indices.to(device)
        return Topology(self.weight_shape, crow, col, self.block_size)

    def linear_positions(self) -> Tensor:
        """[blocks] int64: block row * row_length + column of every block, ascending."""
        return rows_of(self.crow_indices) * self.row_length + self.col_indices

    def validate(self) -> Topology:
        """Return self, or raise a ValueError that names what is wrong with the pattern."""
        pattern = self.crow_indices, self.col_indices
        check_pattern(self.weight_shape, *pattern, self.block_size)
        return self

    @classmethod
    def random(
        cls,
        weight_shape: Sequence[int],
        nnz: int,
        *,
        block_size: int = 1,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Topology:
        """Blocks of `nnz` weights together, a multiple of the block size, at distinct positions,
        uniform over the weight, in O(nnz + O) time and memory.
        """
        shape = check_shape(weight_shape)
        check_nnz(shape, nnz, block_size)
        blocks, block_rows = nnz // block_size, shape[0] // block_size
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type == "meta":
            crow = torch.empty(block_rows + 1, dtype=torch.int32, device=device)
            col = torch.empty(blocks, dtype=torch.int32, device=device)
            return cls(shape, crow, col, block_size)
        source = generator.device if generator is not None else torch.device("cpu")
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=source))
        crow = torch.empty(block_rows + 1, dtype=torch.int32, device="cpu")
        col = torch.empty(blocks, dtype=torch.int32, device="cpu")
        row_length = math.prod(shape[1:])
        _C.sample_pattern(block_rows, row_length, blocks, seed, address(crow), address(col))
        return cls(shape, crow.to(device), col.to(device), block_size)

    @classmethod
    def random_kernels(
        cls,
        weight_shape: Sequence[int],
        nnz: int,
        *,
        block_size: int = 1,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Topology:
        """Whole random kernels, of KH x KW or K weights: as many as `nnz` holds, at least one. With
        blocks, whole kernels of each block row.
        """
        shape = check_shape(weight_shape)
        check_nnz(shape, nnz, block_size)
        size = math.prod(shape[2:])
        count = max(1, nnz // (size * block_size)) * block_size
        options: dict[str, Any] = {
            "block_size": block_size,
            "generator": generator,
            "device": device,
        }
        kernels = cls.random(shape[:2], count, **options)
        steps = torch.arange(size, dtype=torch.int32, device=kernels.col_indices.device)
        col = (kernels.col_indices[:, None] * size + steps).flatten()
        return cls(shape, kernels.crow_indices * size, col, block_size)

    @classmethod
    def from_mask(cls, mask: Tensor, block_size: int = 1) -> Topology:
        """The pattern of the non-zeros (True entries) of a dense `mask` of the weight's shape.

        Raises ValueError, naming the first block, where a block is neither whole nor absent.
        """
        shape = check_shape(mask.shape)
        check_block_size(shape, block_size)
        # One row at a time would save nothing: the dense source exists already.
        there = mask.detach().reshape(shape[0] // block_size, block_size, -1).ne(0)
        whole = there[:, 0]
        if block_size > 1 and (broken := there.any(1) & ~there.all(1)).any():
            row, col = (int(index) for index in broken.nonzero()[0])
            first = row * block_size
            raise ValueError(
                f"mask: expected blocks of {block_size} output channels, whole or absent, but of "
                f"rows {first} to {first + block_size - 1}, column {col}, only "
                f"{int(there[row, :, col].sum())} are there"
            )
        rows, cols = whole.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=whole.shape[0])
        crow = torch.zeros(whole.shape[0] + 1, dtype=torch.int32, device=mask.device)
        check_nnz(shape, cols.numel() * block_size, block_size)
        torch.cumsum(counts, 0, out=crow[1:])
        return cls(shape, crow, cols.int(), block_size)

    @classmethod
    def from_dense_magnitude(cls, weight: Tensor, nnz: int, block_size: int = 1) -> Topology:
        """The `nnz` entries of a dense `weight` largest in magnitude; of blocks, by their mean."""
        shape = check_shape(weight.shape)
        check_nnz(shape, nnz, block_size)
        magnitude = weight.detach().abs().reshape(shape[0], -1)
        if not magnitude.isfinite().all():
            raise ValueError("weight: expected finite values to rank by magnitude, got NaN or inf")
        if block_size > 1:
            magnitude = magnitude.unflatten(0, (-1, block_size)).mean(1)
        largest = magnitude.flatten().topk(nnz // block_size, sorted=False).indices
        return cls.from_positions(shape, largest.sort().values, block_size)

    @classmethod
    def from_positions(
        cls, weight_shape: Sequence[int], positions: Tensor, block_size: int = 1
    ) -> Topology:
        """The pattern of ascending, distinct linear positions [blocks] (int64)."""
        shape = check_shape(weight_shape)
        check_block_size(shape, block_size)
        row_length = math.prod(shape[1:])
        starts = torch.arange(shape[0] // block_size + 1, device=positions.device) * row_length
        crow = torch.searchsorted(positions, starts).int()
        return cls(shape, crow, (positions % row_length).int(), block_size)


def rows_of(crow_indices: Tensor) -> Tensor:
    """[blocks] int64: the block row of every block."""
    counts = crow_indices.long().diff()
    return torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)


def check_shape(weight_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of ints, refused unless a CSR pattern of int32 indices can hold it."""
    if not all(hasattr(size, "__index__") for size in weight_shape):
        raise ValueError(f"weight_shape: expected integers, got {tuple(weight_shape)}")
    shape = tuple(int(size) for size in weight_shape)
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise ValueError(
            "weight_shape: expected (O, I), (O, I // groups, K) or (O, I // groups, KH, KW), "
            f"all positive, got {tuple(weight_shape)}"
        )
    if math.prod(shape[1:]) > INT32_MAX:
        raise ValueError(
            f"weight_shape: a row of {shape} has {math.prod(shape[1:])} weights, more than int32 "
            f"column indices can name ({INT32_MAX})"
        )
    return shape


def check_block_size(weight_shape: Sequence[int], block_size: int, groups: int = 1) -> None:
    """Raises ValueError unless the rows of each of the convolution's groups are whole blocks."""
    check_is_block_size(block_size)
    rows = weight_shape[0] // groups
    if rows % block_size:
        of_group = f" in each of {groups} groups" if groups > 1 else ""
        raise ValueError(
            f"block_size: expected a divisor of the {rows} output channels{of_group}, got "
            f"{block_size}; the largest is {fitting_block_size(weight_shape, block_size, groups)}"
        )


def fitting_block_size(weight_shape: Sequence[int], wanted: int, groups: int = 1) -> int:
    """The largest block size of at most `wanted` that the weight's rows are whole blocks of."""
    return math.gcd(weight_shape[0] // groups, wanted)


def check_nnz(weight_shape: Sequence[int], nnz: int, block_size: int = 1) -> None:
    most = min(math.prod(weight_shape), INT32_MAX)
    if isinstance(nnz, bool) or not isinstance(nnz, Integral) or not 0 <= nnz <= most:
        raise ValueError(
            f"nnz: expected an integer in [0, {most}] for a weight of shape {tuple(weight_shape)}, "
            f"got {nnz!r}"
        )
    check_block_size(weight_shape, block_size)
    if nnz % block_size:
        raise ValueError(
            f"nnz: expected a multiple of block_size={block_size}, got {nnz}; the next one below "
            f"is {nnz - nnz % block_size}"
        )


def check_pattern(
    weight_shape: Sequence[int], crow: Tensor, col: Tensor, block_size: int = 1
) -> None:
    """Raises ValueError unless (crow, col) is a sorted pattern of the shape, no block twice."""
    shape = check_shape(weight_shape)
    check_block_size(shape, block_size)
    rows, row_length = shape[0] // block_size, math.prod(shape[1:])
    what = "nnz" if block_size == 1 else "the number of blocks"
    for name, index in (("crow_indices", crow), ("col_indices", col)):
        check_int32(name, index)
        if index.dim() != 1 or not index.is_contiguous():
            raise ValueError(
                f"{name}: expected a contiguous 1-D tensor, got shape {tuple(index.shape)} "
                f"and strides {index.stride()}"
            )
    if crow.numel() != rows + 1:
        raise ValueError(
            f"crow_indices: expected {rows + 1} entries for the {rows} "
            f"{'' if block_size == 1 else 'block '}rows of a weight of shape {shape}, got "
            f"{crow.numel()}"
        )
    if crow.device != col.device:
        raise ValueError(f"col_indices: expected on {crow.device}, got {col.device}")
    if crow.device.type == "meta":
        return
    if crow[0] != 0 or crow[-1] != col.numel():
        raise ValueError(
            f"crow_indices: expected to run from 0 to {what} = {col.numel()}, "
            f"got {crow[0].item()} to {crow[-1].item()}"
        )
    if (crow[1:] < crow[:-1]).any():
        raise ValueError(
            "crow_indices: expected to never decrease, but a row ends before it starts"
        )
    if not col.numel():
        return
    low, high = col.aminmax()
    if low < 0 or high >= row_length:
        raise ValueError(
            f"col_indices: expected columns in [0, {row_length}) for a weight of shape {shape}, "
            f"got {low.item()} to {high.item()}"
        )
    # A column may fall below its predecessor only where a new row starts.
    falls = (col[1:] <= col[:-1]).nonzero().flatten() + 1
    starts = crow[torch.searchsorted(crow, falls.int(), right=True) - 1]
    if (starts != falls).any():
        where = int(falls[starts != falls][0])
        raise ValueError(
            "col_indices: expected strictly ascending columns in each row, "
            f"got {col[where].item()} after {col[where - 1].item()} at position {where}"
        )
