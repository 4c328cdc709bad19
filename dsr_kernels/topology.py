"""Where the non-zeros of a weight sit.

A weight of shape (O, I/groups, KH, KW), (O, I/groups, K) or (O, I) is a CSR matrix of O rows. Its
columns run over (i * KH + kh) * KW + kw. `crow_indices` [O + 1] and `col_indices` [nnz] are int32
and sorted in each row; only positions are counted in 64 bits, so a weight may have more than 2**31
elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from dsr_kernels.backends.address import address
from dsr_kernels.backends.native import _C

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Topology:
    """The pattern of one sparse weight: its shape, crow_indices [O + 1] and col_indices [nnz]."""

    weight_shape: tuple[int, ...]
    crow_indices: Tensor  # [O + 1] int32
    col_indices: Tensor  # [nnz] int32, sorted in each row

    @property
    def nnz(self) -> int:
        return self.col_indices.numel()

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
        return (
            f"Topology(weight_shape={self.weight_shape}, nnz={self.nnz}, density={self.density:g})"
        )

    def to(self, device: torch.device | str) -> Topology:
        crow, col = self.crow_indices.to(device), self.col_indices.to(device)
        return Topology(self.weight_shape, crow, col)

    def linear_positions(self) -> Tensor:
        """[nnz] int64: row * row_length + column of every non-zero, ascending."""
        return rows_of(self.crow_indices) * self.row_length + self.col_indices

    def validate(self) -> Topology:
        """Return self, or raise a ValueError that names what is wrong with the pattern."""
        check_pattern(self.weight_shape, self.crow_indices, self.col_indices)
        return self

    @classmethod
    def random(
        cls,
        weight_shape: Sequence[int],
        nnz: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Topology:
        """`nnz` distinct positions, uniform over the weight, in O(nnz + O) time and memory."""
        shape = check_shape(weight_shape)
        check_nnz(shape, nnz)
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type == "meta":
            crow = torch.empty(shape[0] + 1, dtype=torch.int32, device=device)
            return cls(shape, crow, torch.empty(nnz, dtype=torch.int32, device=device))
        source = generator.device if generator is not None else torch.device("cpu")
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=source))
        crow = torch.empty(shape[0] + 1, dtype=torch.int32, device="cpu")
        col = torch.empty(nnz, dtype=torch.int32, device="cpu")
        row_length = math.prod(shape[1:])
        _C.sample_pattern(shape[0], row_length, nnz, seed, address(crow), address(col))
        return cls(shape, crow.to(device), col.to(device))

    @classmethod
    def random_kernels(
        cls,
        weight_shape: Sequence[int],
        nnz: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Topology:
        """Whole random kernels, of KH x KW or K weights: as many as `nnz` holds, at least one."""
        shape = check_shape(weight_shape)
        check_nnz(shape, nnz)
        size = math.prod(shape[2:])
        kernels = cls.random(shape[:2], max(1, nnz // size), generator=generator, device=device)
        steps = torch.arange(size, dtype=torch.int32, device=kernels.col_indices.device)
        col = (kernels.col_indices[:, None] * size + steps).flatten()
        return cls(shape, kernels.crow_indices * size, col)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Topology:
        """The pattern of the non-zeros (True entries) of a dense `mask` of the weight's shape."""
        shape = check_shape(mask.shape)
        # One row at a time would save nothing: the dense source exists already.
        rows, cols = mask.detach().reshape(shape[0], -1).ne(0).nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=shape[0])
        crow = torch.zeros(shape[0] + 1, dtype=torch.int32, device=mask.device)
        check_nnz(shape, cols.numel())
        torch.cumsum(counts, 0, out=crow[1:])
        return cls(shape, crow, cols.int())

    @classmethod
    def from_dense_magnitude(cls, weight: Tensor, nnz: int) -> Topology:
        """The `nnz` entries of a dense `weight` largest in magnitude."""
        shape = check_shape(weight.shape)
        check_nnz(shape, nnz)
        magnitude = weight.detach().abs().flatten()
        if not magnitude.isfinite().all():
            raise ValueError("weight: expected finite values to rank by magnitude, got NaN or inf")
        return cls.from_positions(shape, magnitude.topk(nnz, sorted=False).indices.sort().values)

    @classmethod
    def from_positions(cls, weight_shape: Sequence[int], positions: Tensor) -> Topology:
        """The pattern of ascending, distinct linear positions [nnz] (int64)."""
        shape = check_shape(weight_shape)
        row_length = math.prod(shape[1:])
        starts = torch.arange(shape[0] + 1, device=positions.device) * row_length
        crow = torch.searchsorted(positions, starts).int()
        return cls(shape, crow, (positions % row_length).int())


def rows_of(crow_indices: Tensor) -> Tensor:
    """[nnz] int64: the row of every non-zero."""
    counts = crow_indices.long().diff()
    return torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)


def check_shape(weight_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of ints, refused unless a CSR pattern of int32 indices can hold it."""
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


def check_nnz(weight_shape: Sequence[int], nnz: int) -> None:
    most = min(math.prod(weight_shape), INT32_MAX)
    if isinstance(nnz, bool) or not isinstance(nnz, Integral) or not 0 <= nnz <= most:
        raise ValueError(
            f"nnz: expected an integer in [0, {most}] for a weight of shape {tuple(weight_shape)}, "
            f"got {nnz!r}"
        )


def check_pattern(weight_shape: Sequence[int], crow: Tensor, col: Tensor) -> None:
    """Raises ValueError unless (crow, col) is a sorted CSR pattern of the shape, no entry twice."""
    shape = check_shape(weight_shape)
    rows, row_length = shape[0], math.prod(shape[1:])
    for name, index in (("crow_indices", crow), ("col_indices", col)):
        if index.dtype != torch.int32:
            raise ValueError(f"{name}: expected int32, got {index.dtype}")
        if index.dim() != 1 or not index.is_contiguous():
            raise ValueError(
                f"{name}: expected a contiguous 1-D tensor, got shape {tuple(index.shape)} "
                f"and strides {index.stride()}"
            )
    if crow.numel() != rows + 1:
        raise ValueError(
            f"crow_indices: expected {rows + 1} entries for the {rows} rows of a weight of shape "
            f"{shape}, got {crow.numel()}"
        )
    if crow.device != col.device:
        raise ValueError(f"col_indices: expected on {crow.device}, got {col.device}")
    if crow.device.type == "meta":
        return
    if crow[0] != 0 or crow[-1] != col.numel():
        raise ValueError(
            f"crow_indices: expected to run from 0 to nnz = {col.numel()}, "
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
