"""A layer of one row whose output names the columns of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels import SparseLinear

X = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])


def index(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def two_weights() -> SparseLinear:
    """SparseLinear(4, 1), weights 1 and 2 at columns 0 and 2: 201 for X."""
    layer = SparseLinear(4, 1, bias=False, nnz=2)
    layer.replace_topology(index(0, 2), index(0, 2), torch.tensor([1.0, 2.0]))
    return layer
